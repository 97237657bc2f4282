/*
 * What the launcher and the node daemon say to each other: packets on a Unix socket, of this machine's
 * byte order. ssi.node.launcher is the same in Python.
 */
#ifndef SSI_LAUNCHER_H
#define SSI_LAUNCHER_H

#include <stdint.h>

enum { LAUNCHER_KEY = 64 };

enum launcher_request {
	LAUNCHER_START = 1,	/* with descriptors: the details, then those of the new process */
	LAUNCHER_FORGET = 2,
	LAUNCHER_KEEP = 3,	/* with a descriptor: hand it to each daemon to come, under this key */
	LAUNCHER_END = 4,	/* a stand-in ends */
};

enum launcher_reply {
	LAUNCHER_STARTED = 1,	/* pid, or the negative errno of what failed; status 1: entering the folder */
	LAUNCHER_ENDED = 2,	/* pid and wait status */
	LAUNCHER_KEPT = 3,	/* with the descriptor */
	LAUNCHER_TOLD = 4,	/* all there was has been told */
	LAUNCHER_CHANGED = 5,	/* pid and wait status: it has stopped, or goes on */
};

struct launcher_request_head {
	uint32_t kind;
	char key[LAUNCHER_KEY];	/* ends with a NUL */
};

enum launcher_flags {
	LAUNCHER_SESSION = 1,		/* it leads a session of its own */
	LAUNCHER_NO_NEW_PRIVILEGES = 2,
	LAUNCHER_IN_PLACE = 8,	/* a stand-in becomes it itself, and is told no more; it is not answered */
	LAUNCHER_VISITORS = 4,	/* a stand-in below which the folder is /dev */
};

/*
 * In the first descriptor, a file in memory: `limits` resource limits (two uint64_t each, by number),
 * `groups` groups, `fds` descriptor numbers (uint32_t), then strings that end with a NUL: argv,
 * environment, folder. Without argv it is to be a stand-in, a launcher with another's PID, and its one
 * descriptor is the socket where it will listen.
 */
struct launcher_start {
	struct launcher_request_head head;
	int32_t pid;		/* the one to have; 0: any */
	uint64_t blocked, ignored;	/* signals */
	uint32_t uid, euid, gid, egid, umask;
	int32_t nice;
	uint32_t flags;
	int32_t group;		/* to join; 0: one of its own; -1: the launcher's */
	uint32_t death_signal;
	uint32_t limits, groups, fds, argc, envc;
};

struct launcher_reply_packet {
	uint32_t kind;
	char key[LAUNCHER_KEY];
	int32_t pid, status;
};

#endif
