/*
 * What the keeper of connections by named Unix sockets and the node daemon say to each other: packets on a
 * Unix socket, of this machine's byte order. ssi.node.unix.keeper is the same in Python.
 */
#ifndef SSI_UNIXKEEPER_H
#define SSI_UNIXKEEPER_H

#include <stdint.h>

enum unix_order_kind {
	/* Each is answered by a RESULT. */
	UNIX_CONNECT = 1,	/* data: struct unix_file, struct unix_bound, groups. For a client of another node, as
				 * who he is; the result is an errno, with who listens (struct unix_peer, groups) */
	UNIX_LISTEN = 2,	/* with the line to the other keeper; data: struct unix_client, groups. For a
				 * client of this node, as who listens on the other */
	/* These are not. */
	UNIX_CARRY = 3,		/* with the line to the other keeper: of what is connected */
	UNIX_DROP = 4,		/* nobody waits for it any more */
	UNIX_ALIVE = 5,		/* data: owners, uint32_t; what others have is at an end */
	/* Of a stream that was told to `owner` by this number. */
	UNIX_TAKE = 6,		/* answered by a RESULT: an errno, or 0 and the descriptor */
	UNIX_TAKEN = 7,		/* it has been opened for him: here it is closed */
	UNIX_FINISH = 8,	/* of what LISTEN has made for datagrams: nobody sends any more, it ends when all has gone */
};

enum { UNIX_NONBLOCK = 1 };	/* flags of CONNECT */

enum unix_report_kind {
	UNIX_RESULT = 1,	/* role, id, result, data */
	UNIX_GONE = 2,		/* role, id: it has ended */
	UNIX_TOLD = 3,		/* to a new daemon: here we are */
};

struct unix_order {
	uint32_t kind;
	uint32_t role;		/* CONNECT or LISTEN: what has made it; with the id it is its name. Or TAKE */
	uint64_t id;		/* of TAKE and TAKEN: the number */
	uint64_t number;	/* of LISTEN: of its abstract name (image/kernel/patches/unix-elsewhere.patch) */
	uint32_t owner;		/* the other node, in one of its lives */
	uint32_t type, flags;
	int32_t pid;		/* as whom it is made */
	uint32_t uid, gid, groups;
} __attribute__((packed));

struct unix_report {
	uint32_t kind, role;
	uint64_t id;
	int64_t result;
} __attribute__((packed));

/* A file handle, as the kernel has it in FUSE_BMAP. */
struct unix_file {
	uint32_t type, words;
	uint32_t handle[8];
} __attribute__((packed));

/* What the client's socket is bound to; 0: to nothing (image/kernel/patches/unix-names.patch). */
struct unix_bound {
	uint64_t file;
	char path[108];
} __attribute__((packed));

/* Nobody else is let in. */
struct unix_client {
	int32_t pid;
	uint32_t uid;
} __attribute__((packed));

struct unix_peer {
	int32_t pid;
	uint32_t uid, gid;
} __attribute__((packed));

/* On a line, before what it is about: */
enum unix_frame_kind {
	UNIX_DATA = 1,		/* bytes, or one message */
	UNIX_WRITE_ENDED = 2,	/* nothing more comes */
	UNIX_READ_ENDED = 3,	/* nothing more is taken */
	UNIX_CLOSED = 4,	/* both; the last one. A line that ends without it has lost its node */
	UNIX_FILE = 5,		/* struct unix_passed and the path on the root that it has, if any: goes with
				 * the data that come next */
	UNIX_OPENED = 6,	/* so many of these: until then who sent them keeps them open */
};

struct unix_frame {
	uint32_t kind, length;	/* the length of what follows; of OPENED a number */
} __attribute__((packed));

/*
 * An open file that is passed on: one of the root, a device that is alike everywhere, or a stream, as a
 * pipe or a terminal, which stays and is used from there.
 */
struct unix_passed {
	uint32_t device;	/* the minor number of /dev/null and the like */
	uint64_t number;	/* what a stream is to be asked for by; 0 for others */
	uint32_t node;		/* of the stream, which who hears it knows himself */
	uint32_t mode, rdev;	/* of the stream, to stat() */
	uint32_t flags;		/* of open() */
	int64_t offset;
	uint32_t in_memory;	/* it is in /dev/shm */
	struct unix_file file;
} __attribute__((packed));

#endif
