/*
 * What the keeper of devices and the node daemon say to each other: packets on a Unix socket, of this
 * machine's byte order. ssi.node.device.keeper is the same in Python.
 */
#ifndef SSI_DEVICEKEEPER_H
#define SSI_DEVICEKEEPER_H

#include <stdint.h>

enum device_order_kind {
	/* Each is answered by a RESULT, once it is done; asked again by the same answer. */
	DEVICE_OPEN = 1,	/* data: struct device_caller, groups, path below /dev; value: flags of open. Or
				 * none, with a descriptor, unless it came before: it is used as it is. The
				 * result is an end, and what kind of file it is */
	DEVICE_READ = 2,	/* value: bytes at most; offset */
	DEVICE_WRITE = 3,	/* data, of which less may be written than there is; offset */
	DEVICE_IOCTL = 4,	/* value: command; data: what its argument points to; size: bytes to return */
	DEVICE_IOCTL_VALUE = 5,	/* value: command; size: its argument */
	DEVICE_WATCH = 6,	/* value: events of poll; waits until there is one */
	DEVICE_SEEK = 7,	/* value: whence; offset; the result is the new one */
	DEVICE_SYNC = 8,
	/* These are not. */
	DEVICE_CANCEL = 9,	/* what has not been done and has this id: its answer is EINTR */
	DEVICE_DONE = 10,	/* the answer with this id has arrived */
	DEVICE_CLOSE = 11,	/* the end; it is closed when that has been answered, with the id */
	DEVICE_DROP = 12,	/* all ends and orders of this owner: its node is dead */
};

enum device_flags { DEVICE_NONBLOCK = 1 };

enum device_report_kind {
	DEVICE_RESULT = 1,	/* id, end, result, data */
	DEVICE_HELD = 2,	/* to a new daemon: an end */
	DEVICE_TOLD = 3,	/* these were all */
	DEVICE_GONE = 4,	/* an end: closed, or killed with what was ordered of it */
};

/* Of what has been opened. */
enum device_kind { DEVICE_SEEKS = 0, DEVICE_STREAM = 1 };

struct device_order {
	uint32_t kind;
	uint32_t owner;		/* the node, in one of its lives; ids are its own */
	uint64_t id;
	uint32_t end;		/* 0: of an OPEN, or what is about one */
	uint32_t value, size, flags;
	int64_t offset;
} __attribute__((packed));

struct device_report {
	uint32_t kind;
	uint32_t owner;
	uint64_t id;
	int64_t result;
	uint32_t end;
	uint32_t device;	/* of an OPEN: enum device_kind */
} __attribute__((packed));

/* Who opens. */
struct device_caller {
	uint32_t uid, gid, groups;
} __attribute__((packed));

#endif
