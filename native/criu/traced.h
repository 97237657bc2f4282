/*
 * Has a process that we trace make system calls, by an instruction of its vdso: nothing in its memory is changed
 * for that, and the instruction stays for whoever has the memory later.
 */
#ifndef SSI_TRACED_H
#define SSI_TRACED_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* The kernel's own, where it is the process and no ghost yet. */
#define REAL_PROC "/run/ssi/proc"

/* Older headers have no names for them. */
enum { TRACED_GETSIGMASK = 0x420a, TRACED_SETSIGMASK = 0x420b };

enum { TRACED_STOPS = 64, TRACED_LINE = 512, TRACED_VDSO = 1 << 16 };

/* More than a red zone. */
enum { TRACED_BELOW = 1024 };

struct traced {
	pid_t pid;
	struct user_regs_struct before;
	uint64_t mask;		/* the signals that it has blocked */
	uint64_t instruction;
};

/* Returns where its vdso has an instruction that makes a system call, 0 if it has none. */
static uint64_t find_instruction(pid_t pid)
{
	static const unsigned char wanted[2] = { 0x0f, 0x05 };
	static unsigned char code[TRACED_VDSO];
	char line[TRACED_LINE];
	uint64_t found = 0;
	FILE *maps;
	int memory;

	(void)snprintf(line, sizeof(line), REAL_PROC "/%d/mem", pid);
	memory = open(line, O_RDONLY | O_CLOEXEC);
	(void)snprintf(line, sizeof(line), REAL_PROC "/%d/maps", pid);
	maps = fopen(line, "re");
	while (!found && maps && memory >= 0 && fgets(line, sizeof(line), maps)) {
		char *end = line;
		const uint64_t start = strtoull(line, &end, 16);
		const unsigned char *place;
		ssize_t size;

		if (!strstr(line, "[vdso]"))
			continue;
		size = pread(memory, code, sizeof(code), (off_t)start);
		place = size > 0 ? memmem(code, (size_t)size, wanted, sizeof(wanted)) : NULL;
		found = place ? start + (uint64_t)(place - code) : 0;
	}
	if (maps)
		(void)fclose(maps);
	if (memory >= 0)
		(void)close(memory);
	return found;
}

/* What comes from now on does not disturb it. The instruction may be known. Returns 0, or a negative errno. */
static int begin_calls(struct traced *traced, pid_t pid, long options)
{
	const uint64_t all = ~(uint64_t)0;

	traced->pid = pid;
	if (!traced->instruction)
		traced->instruction = find_instruction(pid);
	if (!traced->instruction)
		return -ENOEXEC;
	/* If we are killed it is neither here nor there: then it ends, as its parent sees. */
	if (ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | options) ||
	    ptrace(PTRACE_GETREGS, pid, NULL, &traced->before) ||
	    ptrace((enum __ptrace_request)TRACED_GETSIGMASK, pid, sizeof(traced->mask), &traced->mask) ||
	    ptrace((enum __ptrace_request)TRACED_SETSIGMASK, pid, sizeof(all), &all))
		return -EIO;
	return 0;
}

/* It is as it was. */
static void end_calls(const struct traced *traced)
{
	(void)ptrace((enum __ptrace_request)TRACED_SETSIGMASK, traced->pid, sizeof(traced->mask), &traced->mask);
	(void)ptrace(PTRACE_SETREGS, traced->pid, NULL, &traced->before);
	(void)ptrace(PTRACE_SETOPTIONS, traced->pid, NULL, PTRACE_O_TRACESYSGOOD);
}

/* Goes on to the next stop of the process. What else we trace may end meanwhile: an exec waits until we have
 * seen that of its other threads. */
static bool go_on(pid_t traced, int *status, pid_t waited)
{
	pid_t pid;

	if (ptrace(PTRACE_SYSCALL, traced, NULL, NULL))
		return false;
	do
		pid = waitpid(waited, status, __WALL);
	while (pid >= 0 ? pid != traced : errno == EINTR);
	return pid == traced && WIFSTOPPED(*status);
}

/* Has it make a system call; returns what that returns. */
static long call(const struct traced *traced, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
		 uint64_t e)
{
	const pid_t waited = number == SYS_execve ? -1 : traced->pid;
	struct user_regs_struct regs = traced->before;
	int status, stops = 0;

	regs.rip = traced->instruction;
	regs.rax = (uint64_t)number;
	regs.orig_rax = UINT64_MAX;
	regs.rdi = a;
	regs.rsi = b;
	regs.rdx = c;
	regs.r10 = d;
	regs.r8 = e;
	regs.r9 = 0;
	if (ptrace(PTRACE_SETREGS, traced->pid, NULL, &regs))
		return -errno;
	/* Into the call, and out of it. What else stops it does not count, nor does the end of a call before it: who
	 * has just been born comes from one. */
	for (int tries = 0; tries < TRACED_STOPS && stops < 2; tries++) {
		if (!go_on(traced->pid, &status, waited))
			return -ESRCH;
		if (status >> 16 == PTRACE_EVENT_EXEC)
			return 0;
		if (WSTOPSIG(status) != (SIGTRAP | 0x80))
			continue;
		if (ptrace(PTRACE_GETREGS, traced->pid, NULL, &regs))
			return -EIO;
		stops += regs.orig_rax == (uint64_t)number;
	}
	return stops == 2 ? (long)regs.rax : -EIO;
}

/* Returns a place below what is on its stack. */
static uint64_t find_room(const struct traced *traced)
{
	return (traced->before.rsp - TRACED_BELOW) & ~(uint64_t)15;
}

#endif
