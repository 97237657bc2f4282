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
	/* Each is answered at once, and forgotten. */
	QUEUE_CLOSE = 11,	/* the end; it is closed when that has been answered */
	QUEUE_LOOK = 13,	/* data: an inode (8 bytes), or if value is 1 what a queue is called */
	QUEUE_RESTORE = 14,	/* data: a snapshot; value: 1: with its name. Makes it anew, if it is not there */
	/* These are not. */
	QUEUE_CANCEL = 9,	/* what has not been done and has this id: its answer is EINTR */
	QUEUE_DONE = 10,	/* the answer with this id has arrived */
	QUEUE_DROP = 12,	/* all ends and orders of this owner: its node is dead */
};

enum queue_flags {
	QUEUE_NONBLOCK = 1,
};

enum queue_report_kind {
	QUEUE_RESULT = 1,	/* id, result, value, `length` bytes of data, then a snapshot if it is another */
	QUEUE_HELD = 2,		/* to a new daemon, or of a queue made anew: id: an end */
	QUEUE_TOLD = 3,		/* these were all */
	QUEUE_SHARED = 4,	/* id: what a queue is called; also to a new daemon */
	QUEUE_GONE = 5,		/* the same: nobody else can have it any more */
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
	uint32_t value, length;
} __attribute__((packed));

struct queue_about {
	uint32_t mode, uid, gid;
	uint32_t size;		/* of a message at most */
} __attribute__((packed));

/*
 * A queue that others have had open, to be made anew when its node is dead. Behind it its name, `messages`
 * times struct queue_message and text in their order, `ends` times struct queue_held, and `answers` times
 * struct queue_answer and data: what has been done for others and may not have been heard.
 */
struct queue_snapshot {
	uint64_t version;	/* of two the higher one is the later */
	uint64_t id;		/* what it is called, on whichever node */
	uint32_t mode, uid, gid;
	uint32_t most, size;	/* messages, and bytes of each */
	uint32_t name;		/* so long; 0: removed */
	uint32_t messages, ends, answers;
} __attribute__((packed));

struct queue_message {
	uint32_t priority, length;
} __attribute__((packed));

enum queue_noted { QUEUE_NOT_NOTIFIED = 0, QUEUE_TO_NOTIFY = 1, QUEUE_NOTIFIED = 2 };

struct queue_held {
	uint32_t owner, number;
	uint32_t access;	/* O_RDWR and so on */
	uint32_t noted;
} __attribute__((packed));

struct queue_answer {
	uint32_t owner;
	uint64_t id;
	int64_t result;
	uint32_t kind, end, value, length;
} __attribute__((packed));

#endif
