/*
 * What the launcher and the node daemon say to each other: packets on a Unix socket, of this machine's
 * byte order. ssi.node.launcher is the same in Python.
 */
#ifndef SSI_LAUNCHER_H
#define SSI_LAUNCHER_H

#include <stdint.h>

enum { LAUNCHER_KEY = 64 };

enum launcher_request {
	LAUNCHER_START = 1,	/* with descriptors: the strings, then those of the new process from 0 on */
	LAUNCHER_FORGET = 2,
	LAUNCHER_LISTENER = 3,
};

enum launcher_reply {
	LAUNCHER_STARTED = 1,	/* pid, or the negative errno of what failed; status 1: entering the folder */
	LAUNCHER_ENDED = 2,	/* pid and wait status */
	LAUNCHER_LISTENS = 3,	/* with the descriptor of the filter's listener */
};

struct launcher_request_head {
	uint32_t kind;
	char key[LAUNCHER_KEY];	/* ends with a NUL */
};

struct launcher_start {
	struct launcher_request_head head;
	int32_t pid;		/* the one to have; 0: any */
	uint32_t uid, gid, umask;
	int32_t nice;
	/* In the first descriptor: so many groups, then strings that end with a NUL: argv, environment, folder. */
	uint32_t groups, argc, envc;
};

struct launcher_reply_packet {
	uint32_t kind;
	char key[LAUNCHER_KEY];
	int32_t pid, status;
};

#endif
