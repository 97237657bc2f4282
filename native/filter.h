/*
 * The SSI filter: which system calls ssid hears of before the kernel does them.
 *
 * Those that name a process which is not of this node, by its PID or a descriptor, and those that name a
 * process group, as its members may be anywhere. System V IPC objects that are not of this node, by
 * identifier or key. What names nothing remote is decided here, in the kernel, and costs nothing else.
 */
#ifndef SSI_FILTER_H
#define SSI_FILTER_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PID_BITS = 15,
	/* What ssid has taken in hand is not interrupted but by death; older headers have no name for it. */
	FILTER_WAIT_KILLABLE = 1 << 5,
};

#define FILTER_LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define FILTER_IF(how, value, yes, no) BPF_JUMP(BPF_JMP | (how) | BPF_K, value, yes, no)
#define FILTER_RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)

enum { FILTER_NO_SIGNAL = 0 };

/*
 * Bits of an identifier that say of which node, in which life, an IPC object is (kernel.ipc_range,
 * src/ssi/node/state/ipc.py).
 */
enum { IPC_RANGE_SHIFT = 14, IPC_RANGES = 0x3ff };

/* Each is a system call, which of its arguments is a PID, and which a signal. */
static const struct filter_call {
	uint32_t number, argument, signal;
} FILTER_CALLS[] = {
	{ __NR_kill, 0, 1 },
	{ __NR_tkill, 0, 1 },
	{ __NR_tgkill, 0, 2 },
	{ __NR_rt_sigqueueinfo, 0, 1 },
	{ __NR_rt_tgsigqueueinfo, 0, 2 },
	{ __NR_getpgid, 0, FILTER_NO_SIGNAL },
	{ __NR_getsid, 0, FILTER_NO_SIGNAL },
	{ __NR_getpriority, 1, FILTER_NO_SIGNAL },
	{ __NR_setpriority, 1, FILTER_NO_SIGNAL },
	{ __NR_sched_setparam, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_getparam, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_setscheduler, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_getscheduler, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_setaffinity, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_getaffinity, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_setattr, 0, FILTER_NO_SIGNAL },
	{ __NR_sched_getattr, 0, FILTER_NO_SIGNAL },
	{ __NR_ioprio_set, 1, FILTER_NO_SIGNAL },
	{ __NR_ioprio_get, 1, FILTER_NO_SIGNAL },
	{ __NR_prlimit64, 0, FILTER_NO_SIGNAL },
	{ __NR_pidfd_open, 0, FILTER_NO_SIGNAL },
};

enum { IPC_BLOCK = 20 };

/*
 * Writes what a call of System V IPC comes to, whose number is in the accumulator: ssid hears of keys that
 * are not private, of identifiers that are not of `range`, and of removals, of which other nodes may have
 * to know; and of all that asks or changes what shared memory is, as several kernels may have it. semtimedop comes in where its identifier is looked at.
 */
static void filter_ipc(struct sock_filter *code, uint32_t range)
{
	const struct sock_filter block[IPC_BLOCK] = {
		/* 0 */ FILTER_IF(BPF_JEQ, __NR_shmdt, 17, 0),
		/* 1 */ FILTER_IF(BPF_JEQ, __NR_shmget, 11, 0),
		/* 2 */ FILTER_IF(BPF_JEQ, __NR_semget, 10, 0),
		/* 3 */ FILTER_IF(BPF_JEQ, __NR_msgget, 9, 0),
		/* 4 */ FILTER_IF(BPF_JEQ, __NR_semctl, 6, 0),
		/* 5 */ FILTER_IF(BPF_JEQ, __NR_msgctl, 3, 0),
		/* 6 */ FILTER_IF(BPF_JEQ, __NR_shmctl, 0, 8),
		/* 7 */ FILTER_LOAD(args[1]),
		/* 8 */ FILTER_IF(BPF_JGE, 3, 6, 10),	/* behind IPC_RMID, IPC_SET and IPC_STAT */
		/* 9 */ FILTER_LOAD(args[1]),
		/* 10 */ FILTER_IF(BPF_JEQ, 0, 8, 4),	/* IPC_RMID */
		/* 11 */ FILTER_LOAD(args[2]),
		/* 12 */ FILTER_IF(BPF_JEQ, 0, 6, 2),
		/* 13: a key */ FILTER_LOAD(args[0]),
		/* 14 */ FILTER_IF(BPF_JEQ, 0, 3, 4),	/* IPC_PRIVATE */
		/* 15: an identifier */ FILTER_LOAD(args[0]),
		/* 16 */ BPF_STMT(BPF_ALU | BPF_AND | BPF_K, IPC_RANGES << IPC_RANGE_SHIFT),
		/* 17 */ FILTER_IF(BPF_JEQ, range << IPC_RANGE_SHIFT, 0, 1),
		/* 18 */ FILTER_RETURN(SECCOMP_RET_ALLOW),
		/* 19 */ FILTER_RETURN(SECCOMP_RET_USER_NOTIF),
	};

	memcpy(code, block, sizeof(block));
}

/*
 * Installs the filter of a node whose PIDs are from `first` on, and whose IPC objects are of `range` (0: no
 * others are known); returns the listener, -1 with errno.
 *
 * For each call in turn: if it is that one, its PID is looked at: 0 (oneself) and those of this node,
 * with the low ones that every node has, are the kernel's affair. kill(0), the caller's own group,
 * is not. Nor is SIGSTOP, which a ghost of this node could not pass on.
 */
static int filter_install(uint32_t first, uint32_t range)
{
	enum { CALLS = sizeof(FILTER_CALLS) / sizeof(FILTER_CALLS[0]), EACH = 12, HEAD = 13 + IPC_BLOCK };
	const uint32_t end = first + (1U << PID_BITS);
	struct sock_filter code[HEAD + CALLS * EACH + 1];
	struct sock_fprog program = { .filter = code };
	uint32_t lowest = __NR_pidfd_send_signal;
	size_t at = 0;

	for (size_t i = 0; i < CALLS; i++)
		lowest = FILTER_CALLS[i].number < lowest ? FILTER_CALLS[i].number : lowest;
	/* Another architecture's numbers mean other calls; they are left alone. */
	code[at++] = (struct sock_filter)FILTER_LOAD(arch);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
	code[at++] = (struct sock_filter)FILTER_RETURN(SECCOMP_RET_ALLOW);
	code[at++] = (struct sock_filter)FILTER_LOAD(nr);
	/* The frequent ones, from read to wait4, are below all of ours, but for shared memory's. */
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JGE, lowest, 3, 0);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JGE, __NR_shmctl + 1, 1, 0);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JGE, __NR_shmget, range ? 4 : 0, 0);
	code[at++] = (struct sock_filter)FILTER_RETURN(SECCOMP_RET_ALLOW);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JEQ, range ? __NR_semtimedop : UINT32_MAX, 17, 0);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JGE, range ? __NR_msgctl + 1 : 0, IPC_BLOCK + 1, 0);
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JGE, __NR_semget, 0, IPC_BLOCK);
	filter_ipc(&code[at], range);
	at += IPC_BLOCK;
	/* Which process its descriptor is of, ssid finds out. */
	code[at++] = (struct sock_filter)FILTER_IF(BPF_JEQ, __NR_pidfd_send_signal, 0, 1);
	code[at++] = (struct sock_filter)FILTER_RETURN(SECCOMP_RET_USER_NOTIF);
	for (size_t i = 0; i < CALLS; i++) {
		const struct filter_call *call = &FILTER_CALLS[i];
		uint32_t self = call->number == __NR_kill ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ALLOW;
		const struct sock_filter block[EACH] = {
			FILTER_IF(BPF_JEQ, call->number, 0, EACH - 1),
			FILTER_LOAD(args[call->argument]),
			FILTER_IF(BPF_JEQ, 0, 4, 0),
			FILTER_IF(BPF_JGE, end, 2, 0),	/* or negative */
			FILTER_IF(BPF_JGE, first, 3, 0),
			FILTER_IF(BPF_JGE, 1U << PID_BITS, 0, 2),
			FILTER_RETURN(SECCOMP_RET_USER_NOTIF),
			FILTER_RETURN(self),
			FILTER_LOAD(args[call->signal]),
			FILTER_IF(BPF_JEQ, call->signal ? SIGSTOP : UINT32_MAX, 0, 1),
			FILTER_RETURN(SECCOMP_RET_USER_NOTIF),
			FILTER_RETURN(SECCOMP_RET_ALLOW),
		};

		memcpy(&code[at], block, sizeof(block));
		at += EACH;
	}
	code[at++] = (struct sock_filter)FILTER_RETURN(SECCOMP_RET_ALLOW);
	program.len = (unsigned short)at;
	return (int)syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER | FILTER_WAIT_KILLABLE, &program);
}

#endif
