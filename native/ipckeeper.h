/*
 * What the keeper of System V IPC and the node daemon say to each other: packets on a Unix socket, of
 * this machine's byte order. ssi.node.ipc.keeper is the same in Python.
 */
#ifndef SSI_IPCKEEPER_H
#define SSI_IPCKEEPER_H

#include <stdint.h>

enum ipc_order_kind {
	/* Each is answered by a RESULT, once it is done; asked again by the same answer, until DONE. */
	IPC_DO = 1,
	IPC_RESTORE = 2,	/* data: a snapshot. The result is the identifier */
	/* These are not. */
	IPC_CANCEL = 3,		/* what has not been done and has this id: its answer is EINTR */
	IPC_DONE = 4,		/* the answer with this id has arrived */
	IPC_DROP = 5,		/* all that this owner has: its node is dead */
	IPC_ENDED = 6,		/* the process `pid` of this owner has ended: its undo is done */
};

/* What is done: the system call, and its arguments. */
enum ipc_call {
	IPC_SEMGET = 1,		/* key, semaphores, flags */
	IPC_MSGGET = 2,		/* key, 0, flags */
	IPC_SHMGET = 3,		/* key, bytes, flags */
	IPC_SEMOP = 4,		/* nanoseconds at most, -1 for ever; data: struct sembuf each */
	IPC_MSGSND = 5,		/* type, flags; data: text */
	IPC_MSGRCV = 6,		/* bytes, type, flags; returns type (8 bytes) and text */
	IPC_SEMCTL = 7,		/* number, command, value; data: what its pointer leads to */
	IPC_MSGCTL = 8,		/* 0, command; the same */
	IPC_SHMCTL = 9,
};

enum ipc_flags {
	IPC_SNAPSHOT = 1,	/* the object goes with the answer */
};

enum ipc_report_kind {
	IPC_RESULT = 1,		/* id, result, `length` bytes of data, then a snapshot */
	IPC_HELD = 2,		/* to a new daemon: id: a process of this owner that has undo here */
	IPC_TOLD = 3,		/* these were all */
};

struct ipc_order {
	uint32_t kind;
	uint32_t owner;		/* the node, in one of its lives; ids are its own */
	uint64_t id;
	uint32_t call;
	int32_t object;		/* an identifier */
	int64_t words[3];
	uint32_t flags;
	uint32_t pid, uid, gid;	/* of the caller; the IDs are the effective ones */
	uint32_t groups;	/* so many 32-bit words follow, then the data */
} __attribute__((packed));

struct ipc_report {
	uint32_t kind;
	uint32_t owner;
	uint64_t id;
	int64_t result;
	uint32_t length;
} __attribute__((packed));

enum ipc_object_kind { IPC_SEMAPHORES = 0, IPC_QUEUE = 1, IPC_MEMORY = 2 };

/*
 * An object, to be made anew when its node is dead. Behind it `count` messages (struct ipc_message and
 * text) or semaphores (struct ipc_value), `undos` times struct ipc_undo and `count` words of 32 bits, and
 * `answers` times struct ipc_report and data: what has been done to it and may not have been heard.
 */
struct ipc_snapshot {
	uint64_t version;	/* of two the higher one is the later */
	uint32_t kind;
	int32_t id, key;
	uint32_t mode, uid, gid, cuid, cgid;
	uint32_t count, room;	/* room: bytes in a queue */
	uint32_t undos, answers;
} __attribute__((packed));

struct ipc_message {
	int64_t type;
	uint32_t length;
} __attribute__((packed));

struct ipc_value {
	int32_t value;
	int32_t undo;		/* what its own node's processes would add if they ended */
} __attribute__((packed));

struct ipc_undo {
	uint32_t owner, pid;
} __attribute__((packed));

#endif
