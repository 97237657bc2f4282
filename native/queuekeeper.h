/*
 * What the keeper of POSIX message queues and the node daemon say to each other: packets on a Unix
 * socket, of this machine's byte order. ssi.node.queues.keeper is the same in Python.
 */
#ifndef SSI_QUEUEKEEPER_H
#define SSI_QUEUEKEEPER_H

#include <stdint.h>

enum queue_order_kind {
	/* Each is answered by a RESULT, once it is done; asked again by the same answer, until DONE. */
	QUEUE_OPEN = 1,		/* value: flags of mq_open; data: name. The result is an end, with queue_about */
	QUEUE_UNLINK = 2,	/* data: name */
	QUEUE_SEND = 3,		/* value: priority; data: text */
	QUEUE_RECEIVE = 4,	/* size: of the longest message; returns priority (in value) and text */
	QUEUE_GETATTR = 5,	/* returns struct mq_attr */
	QUEUE_WATCH = 6,	/* value: events of poll; waits until there is one */
	QUEUE_NOTIFY = 7,	/* value: 1, or 0 for no longer */
	QUEUE_AWAIT = 8,	/* waits until it is notified, or is to be no longer: the result is 1 or 0 */
	/* These are not. */
	QUEUE_CANCEL = 9,	/* what has not been done and has this id: its answer is EINTR */
	QUEUE_DONE = 10,	/* the answer with this id has arrived */
	QUEUE_CLOSE = 11,	/* the end; it is closed when that has been answered, with the id */
	QUEUE_DROP = 12,	/* all ends and orders of this owner: its node is dead */
};

enum queue_flags {
	QUEUE_NONBLOCK = 1,
};

enum queue_report_kind {
	QUEUE_RESULT = 1,	/* id, result, value, data */
	QUEUE_HELD = 2,		/* to a new daemon: id: an end */
	QUEUE_TOLD = 3,		/* these were all */
};

struct queue_order {
	uint32_t kind;
	uint32_t owner;		/* the node, in one of its lives; ids are its own */
	uint64_t id;
	uint32_t end, value, size, flags;
	int64_t sec;		/* waits until then; -1: for ever */
	uint32_t nsec;
	uint32_t uid, gid;	/* of who opens or removes: the effective ones */
	uint32_t groups;	/* so many 32-bit words follow, then the data */
} __attribute__((packed));

struct queue_report {
	uint32_t kind;
	uint32_t owner;
	uint64_t id;
	int64_t result;
	uint32_t value;
} __attribute__((packed));

struct queue_about {
	uint32_t mode, uid, gid;
	uint32_t size;		/* of a message at most */
} __attribute__((packed));

#endif
