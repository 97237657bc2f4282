/*
 * What the keeper of FIFOs and the node daemon say to each other: packets on a Unix socket, of this
 * machine's byte order. ssi.node.fifo.keeper is the same in Python.
 */
#ifndef SSI_FIFOKEEPER_H
#define SSI_FIFOKEEPER_H

#include <stdint.h>

enum fifo_order_kind {
	/* Each is answered by a RESULT, once it is done; asked again by the same answer. */
	FIFO_OPEN = 1,		/* data: struct fifo_name; value: flags of open. The result is an end */
	FIFO_READ = 2,		/* value: bytes at most */
	FIFO_WRITE = 3,		/* data, of which less may be written than there is */
	FIFO_IOCTL = 4,		/* value: command; data: what its argument points to; size: bytes to return */
	FIFO_WATCH = 5,		/* value: events of poll; waits until there is one */
	/* These are not. */
	FIFO_CANCEL = 6,	/* what has not been done and has this id: its answer is EINTR */
	FIFO_DONE = 7,		/* the answer with this id has arrived */
	FIFO_CLOSE = 8,		/* the end; it is closed when that has been answered, with the id */
	FIFO_DROP = 9,		/* all ends and orders of this owner: its node is dead */
};

enum fifo_flags {
	FIFO_NONBLOCK = 1,
	FIFO_STANDS = 2,	/* of an open: it was open before, nobody is waited for */
};

enum fifo_report_kind {
	FIFO_RESULT = 1,	/* id, result, data */
	FIFO_HELD = 2,		/* to a new daemon: id: an end; data: struct fifo_name */
	FIFO_TOLD = 3,		/* these were all */
};

struct fifo_order {
	uint32_t kind;
	uint32_t owner;		/* the node, in one of its lives; ids are its own */
	uint64_t id;
	uint32_t end, value, size, flags;
} __attribute__((packed));

struct fifo_report {
	uint32_t kind;
	uint32_t owner;
	uint64_t id;
	int64_t result;
} __attribute__((packed));

/* A file handle, as the kernel has it in FUSE_OPEN (image/kernel/patches/cuse-fifos.patch). */
struct fifo_name {
	uint32_t type, words;
	uint32_t handle[8];
} __attribute__((packed));

#endif
