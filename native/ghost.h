/*
 * What a ghost and the node daemon say to each other, within frames of the local socket (local.h): the
 * daemon orders, the ghost reports. Of this machine's byte order; ssi.node.process.orders is the same in
 * Python.
 */
#ifndef SSI_GHOST_H
#define SSI_GHOST_H

#include <stdint.h>

enum ghost_order_kind {
	/* Each is answered by a RESULT, once it is done; asked again by the same answer. */
	GHOST_READ = 1,		/* value: bytes at most */
	GHOST_WRITE = 2,	/* data; value, of messages: 1 if one begins here */
	GHOST_IOCTL = 3,	/* value: command; data: what its argument points to; size: bytes to return */
	GHOST_IOCTL_VALUE = 4,	/* value: command; size: the argument itself */
	GHOST_WATCH = 5,	/* value: events of poll; waits until there is one */
	GHOST_TERMINAL = 6,	/* open the terminal of our session; the result is the descriptor */
	GHOST_SHUTDOWN = 7,	/* value: which halves of a socket, as shutdown() has it */
	/* These are not. */
	GHOST_CANCEL = 8,	/* what has not been done and has this id: its answer is EINTR */
	GHOST_DONE = 9,		/* the answer with this id has arrived */
	GHOST_CLOSE = 10,	/* fd: the body has closed it */
	GHOST_STATE = 11,	/* value: the body's wait status; size: 1 if others still use descriptors */
	GHOST_STARTED = 12,	/* the body is there */
	GHOST_HERE = 13,	/* value: which word of the arguments is the command: be it yourself */
	GHOST_HOME = 15,	/* the body comes home: become it; data: which move; size: 1 if behind a
				 * NUL are descriptors that are still used */
	GHOST_REAP = 16,	/* id: a child of which the body has heard that it has ended */
	GHOST_SEEK = 14,	/* fd; id: the offset at which the body has left a file that it read */
};

enum ghost_flags {
	GHOST_NONBLOCK = 1,
	GHOST_SETS = 2,		/* a process in the background is stopped for it */
	GHOST_MESSAGES = 4,	/* of a socket that carries messages: what is read or written are these as in
				 * messages.h, cut anywhere */
};

enum ghost_report_kind {
	GHOST_HELLO = 1,	/* struct ghost_hello */
	GHOST_RESULT = 2,	/* id, result, data */
	GHOST_SIGNAL = 3,	/* struct signalfd_siginfo */
	GHOST_ORPHAN = 4,	/* the parent has ended */
	GHOST_CHILD = 6,	/* id: a child; result: its wait status; told again until it is reaped */
	GHOST_ALONE = 7,	/* the last child has been reaped */
	GHOST_KEEPER = 5,	/* result: the process that is left for the descriptors when we end */
};

/* Results besides those of system calls. */
enum { GHOST_BACKGROUND = -4000 };	/* not of the terminal's foreground group: stop for that */

/* With a signal of the daemon's own: it is for the ghost, not for the body. */
enum { GHOST_OWN_SIGNAL = 0x551 };

struct ghost_order {
	uint32_t kind;
	int32_t fd;
	uint64_t id;
	uint32_t value, size, flags, spare;
} __attribute__((packed));

struct ghost_report {
	uint32_t kind, spare;
	uint64_t id;
	int64_t result;
} __attribute__((packed));

struct ghost_hello {
	uint64_t blocked, ignored;	/* signals: bit n-1 for signal n */
	uint32_t death_signal, keeps;	/* keeps: 1 if the body has ended, and we are such a process */
} __attribute__((packed));

#endif
