/*
 * What the plugin and the node daemon say to each other: one packet each way. Of this machine's byte
 * order; ssi.node.migration.barrier is the same in Python.
 */
#ifndef SSI_MOVE_H
#define SSI_MOVE_H

#include <stdint.h>

/* In the userland; only root may connect. */
#define MOVE_SOCKET "/run/ssi/move.sock"

/* In the environment: which move it is. */
#define MOVE_VARIABLE "SSI_MOVE"
/* And, where a process is restored, its PID. */
#define MOVE_PLACE "SSI_PLACE"
/* And, where a ghost becomes it: whose ghost that was, in numbers (homecoming.c). */
#define MOVE_USER "SSI_USER"
/* Where a process is dumped: the number that the connection for its pages is to have. It is not there from the
 * beginning: CRIU is loaded while it is being made. */
#define MOVE_LINE "SSI_LINE"
/* Where a process with much memory is dumped: the connection for its pages, the file for where they are,
 * the process, and whether they follow later (1), when they are asked for, or go at once (0). */
#define MOVE_PAGES "SSI_PAGES"
#define MOVE_PAGES_WORDS "%d,%d,%d,%d"

enum { MOVE_ID = 32, MOVE_MAX = 4096 };

enum move_question {
	MOVE_DUMPED = 1,	/* the images are written, the process is held; the answer may take long; number:
				 * who keeps its memory, or 0 */
	MOVE_FILE = 2,		/* number: a file entry; the answer has its descriptor */
	MOVE_READY = 3,		/* the process is restored and held; the answer may take long */
	MOVE_DONE = 4,		/* what the answer to DUMPED asked for is done; number: 0 or a negative errno */
	MOVE_HOME = 5,		/* a ghost asks what to become; the answer has the images' descriptor */
	MOVE_HELD = 6,		/* from now on the process ends if we do; the answer is that to DUMPED */
	MOVE_CRIU = 7,		/* it is we who go on as CRIU where a process is restored */
	MOVE_LOCK = 8,		/* process number waits for a lock of the one that is restored */
	MOVE_BEGIN = 9,		/* nothing has been done to the process yet; the answer has the connection */
	MOVE_BACK = 10,		/* it cannot be restored where its ghost was; the answer says how to be that again */
	MOVE_KEPT = 11,		/* number: a descriptor that the ghost had; the answer has it */
};

enum move_verdict {
	MOVE_GO_ON = 1,		/* let it run */
	MOVE_KILL = 2,
	MOVE_GHOST = 3,		/* have it become a ghost */
	MOVE_REFUSED = 4,	/* there is no such descriptor */
	MOVE_HOLD = 5,		/* it may not run on without our word any more: say HELD */
};

struct move_request {
	uint32_t question;
	int32_t number;
	char id[MOVE_ID];
} __attribute__((packed));

/* Behind it: words that end with a 0 each, a program's arguments and variables. */
struct move_answer {
	uint32_t verdict;
	uint32_t words, variables;	/* how many there are, and how many of them are variables */
} __attribute__((packed));

#endif
