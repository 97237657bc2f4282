/*
 * What the keeper of relayed sockets and the node daemon say to each other: packets on a Unix socket, of
 * this machine's byte order. ssi.node.relay.keeper is the same in Python.
 */
#ifndef SSI_RELAY_H
#define SSI_RELAY_H

#include <stdint.h>

enum relay_order_kind {
	/* Each is answered by a RESULT with its id. */
	RELAY_ADD = 1,		/* a socket; with the file of its state, and what keeps its far end open. The
				 * result is its number, with the socket. It rests until GO_ON. */
	RELAY_FREEZE = 2,	/* have nothing under way, and write the state into the file that comes along,
				 * with messages that are not received yet from the process's socket, which
				 * comes along as well; nobody uses that meanwhile */
	RELAY_GIVE_BACK = 3,	/* with a file of state, and the socket: it was elsewhere, what is in the file
				 * comes before what is in the socket and behind what was written to it */
	/* These are not. */
	RELAY_GO_ON = 4,
	RELAY_END = 5,		/* the socket is another's by now: nobody is to hear that it is closed here */
	RELAY_ANSWER = 6,	/* id: of what was wanted; value: its result; data */
};

enum relay_report_kind {
	RELAY_RESULT = 1,	/* id, result; handle: the inode of a new socket */
	RELAY_HELD = 2,		/* to a new daemon: id: the inode, handle, value: the state, move */
	RELAY_TOLD = 3,		/* these were all */
	RELAY_WANT = 4,		/* id; value: what is to be done at the far end; result: its argument; data */
	RELAY_CANCEL = 5,	/* what was wanted by this id is to end soon */
	RELAY_DONE = 6,		/* the answer to it has arrived */
	RELAY_GONE = 7,
};

enum relay_state { RELAY_RESTS = 1, RELAY_RUNS = 2, RELAY_FREEZES = 3, RELAY_FROZEN = 4 };

struct relay_order {
	uint32_t kind, relay;
	uint64_t id;
	int64_t value;		/* of ADD: the handle of the far end; 0 if that comes along itself */
	char move[32];
} __attribute__((packed));

struct relay_report {
	uint32_t kind, relay;
	uint64_t id;
	int64_t result;
	uint64_t handle;
	uint32_t value, flags;	/* flags: GHOST_MESSAGES or none */
	char move[32];
} __attribute__((packed));

/* A file of state: this, what is on its way to the socket, and what is on its way from it. Messages are as
 * in messages.h. */
struct relay_saved {
	uint32_t flags;
	uint32_t uid, gid;	/* SO_PEERCRED's */
	uint32_t type;		/* SOCK_STREAM and so on */
	uint32_t send_room;	/* SO_SNDBUF's */
	uint32_t in, out;	/* bytes */
} __attribute__((packed));

enum relay_flags {
	RELAY_FAR_ENDED = 1,	/* nothing more comes from the far end */
	RELAY_NEAR_ENDED = 2,	/* nothing more is written to the socket */
	RELAY_IN_BROKEN = 4,	/* nobody reads from the socket any more */
	RELAY_OUT_BROKEN = 8,	/* the far end takes nothing more */
	RELAY_OUT_SHUT = 16,	/* the far end knows that nothing more comes */
	/* Of datagrams. There NEAR_ENDED is that the socket has been closed. */
	RELAY_FAR_GONE = 32,	/* the other end of the far end has been closed */
	RELAY_SHUT_READS = 64,	/* halves that the process has shut, which the other end does not hear */
	RELAY_SHUT_WRITES = 128,
};

#endif
