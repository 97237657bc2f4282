/*
 * What the node daemon wants of checkpoint and restart, in frames of kind ORDER; what became of it is
 * answered in a REPORT of four bytes: 0 or an errno. ssi.node.applets.saved is the same in Python.
 */
#ifndef SSI_SAVED_H
#define SSI_SAVED_H

#include "local.h"

#define SAVED_OPEN "open "	/* and a path: begin to write, or to read, that file */
#define SAVED_KEEP "keep"	/* the file is complete */
#define SAVED_START "start "	/* and a PID and a move: make the process that becomes what was saved */

static inline int saved_report(int connection, int failure)
{
	const uint32_t number = htole32((uint32_t)failure);

	return local_send_frame(connection, LOCAL_REPORT, &number, sizeof(number));
}

#endif
