/*
 * Has a process that we trace become a ghost, in its place: the same PID, parent, group and session. The
 * ghost itself closes the descriptors that do not stay.
 */
#ifndef SSI_BECOME_H
#define SSI_BECOME_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* The kernel's own, where it is the process and no ghost yet. */
#define REAL_PROC "/run/ssi/proc"

#define GHOST_PROGRAM "/usr/bin/onnode"

/* Older headers have no names for them. */
enum { BECOME_GETSIGMASK = 0x420a, BECOME_SETSIGMASK = 0x420b };

enum { GHOST_ARGUMENTS = 8, BECOME_ROOM = 8192, BECOME_STOPS = 64 };

struct ghost {
	char *arguments[GHOST_ARGUMENTS + 1];
	char *variable;		/* of its environment, the only one: SSI_KEPT=FD,...;SIGNAL,... */
};

struct become {
	pid_t pid;
	int memory;
	struct user_regs_struct before;
	unsigned char code[2];
	uint64_t room, next;
};

/* Goes on to the next stop of the process. Its other threads, which we trace as well, end when it execs,
 * and it waits until we have seen that. */
static bool go_on(const struct become *be, int *status)
{
	pid_t pid;

	if (ptrace(PTRACE_SYSCALL, be->pid, NULL, NULL))
		return false;
	do
		pid = waitpid(-1, status, __WALL);
	while (pid >= 0 && pid != be->pid);
	return pid == be->pid && WIFSTOPPED(*status);
}

/* Has it make a system call; returns what that returns. */
static long call(const struct become *be, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
		 uint64_t e)
{
	struct user_regs_struct regs = be->before;
	int status, stops = 0;

	regs.rax = (uint64_t)number;
	regs.orig_rax = UINT64_MAX;
	regs.rdi = a;
	regs.rsi = b;
	regs.rdx = c;
	regs.r10 = d;
	regs.r8 = e;
	regs.r9 = 0;
	if (ptrace(PTRACE_SETREGS, be->pid, NULL, &regs))
		return -errno;
	/* Into the call, and out of it; what else stops it does not count. */
	for (int tries = 0; tries < BECOME_STOPS && stops < 2; tries++) {
		if (!go_on(be, &status))
			return -ESRCH;
		if (status >> 16 == PTRACE_EVENT_EXEC)
			return 0;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			stops++;
	}
	if (stops < 2 || ptrace(PTRACE_GETREGS, be->pid, NULL, &regs))
		return -EIO;
	return (long)regs.rax;
}

/* Puts bytes into its memory; returns where, 0 if there is no room. */
static uint64_t put(struct become *be, const void *data, size_t size)
{
	const uint64_t place = be->next;

	if (place + size > be->room + BECOME_ROOM ||
	    pwrite(be->memory, data, size, (off_t)place) != (ssize_t)size)
		return 0;
	be->next = (place + size + 15) & ~(uint64_t)15;
	return place;
}

static long exec_ghost(struct become *be, const struct ghost *ghost)
{
	const uint64_t path = put(be, GHOST_PROGRAM, sizeof(GHOST_PROGRAM));
	uint64_t variables[2] = { put(be, ghost->variable, strlen(ghost->variable) + 1) };
	uint64_t arguments[GHOST_ARGUMENTS + 1] = { 0 }, list, environment;

	for (size_t i = 0; ghost->arguments[i]; i++)
		if (!(arguments[i] = put(be, ghost->arguments[i], strlen(ghost->arguments[i]) + 1)))
			return -E2BIG;
	list = put(be, arguments, sizeof(arguments));
	environment = put(be, variables, sizeof(variables));
	if (!path || !list || !environment || !variables[0])
		return -E2BIG;
	return call(be, SYS_execve, path, list, environment, 0, 0);
}

/* Returns 0, or a negative errno with which it is as it was. */
static long make_ghost(struct become *be, const struct ghost *ghost)
{
	long result = call(be, SYS_mmap, 0, BECOME_ROOM, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, UINT64_MAX);

	if (result < 0 && result > -4096)
		return result;
	be->room = be->next = (uint64_t)result;
	/* What it keeps must be open behind the exec. */
	for (const char *next = strchr(ghost->variable, '='); next && next[1] && next[1] != ';';) {
		char *end;
		const unsigned long fd = strtoul(next + 1, &end, 10);

		result = call(be, SYS_fcntl, fd, F_SETFD, 0, 0, 0);
		if (result)
			return result;
		next = *end == ',' ? end : NULL;
	}
	return exec_ghost(be, ghost);
}

/* Returns 0, or a negative errno. */
static int become(pid_t pid, const struct ghost *ghost)
{
	static const unsigned char code[2] = { 0x0f, 0x05 };	/* syscall */
	const uint64_t all = ~(uint64_t)0;
	struct become be = { .pid = pid };
	uint64_t mask = 0;
	char path[64];
	long result;

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/mem", pid);
	be.memory = open(path, O_RDWR | O_CLOEXEC);
	if (be.memory < 0)
		return -errno;
	/* If we are killed it is neither the one nor the other: then it ends, as its parent sees. */
	if (ptrace(PTRACE_SETOPTIONS, pid, NULL,
		   PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL) ||
	    ptrace(PTRACE_GETREGS, pid, NULL, &be.before) ||
	    pread(be.memory, be.code, sizeof(be.code), (off_t)be.before.rip) != sizeof(be.code) ||
	    pwrite(be.memory, code, sizeof(code), (off_t)be.before.rip) != sizeof(code)) {
		close(be.memory);
		return -EIO;
	}
	/* What comes from now on is for the ghost, and the exec resets what is done about it. */
	(void)ptrace((enum __ptrace_request)BECOME_GETSIGMASK, pid, sizeof(mask), &mask);
	(void)ptrace((enum __ptrace_request)BECOME_SETSIGMASK, pid, sizeof(all), &all);
	result = make_ghost(&be, ghost);
	if (result) {
		(void)ptrace((enum __ptrace_request)BECOME_SETSIGMASK, pid, sizeof(mask), &mask);
		(void)!pwrite(be.memory, be.code, sizeof(be.code), (off_t)be.before.rip);
		(void)ptrace(PTRACE_SETREGS, pid, NULL, &be.before);
	}
	(void)ptrace(PTRACE_SETOPTIONS, pid, NULL, 0);
	close(be.memory);
	return (int)result;
}

#endif
