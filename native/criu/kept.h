/*
 * The memory of a process that leaves: kept by a process that shares it and never runs, and served to who brings
 * it when the process goes on (pager.c).
 */
#ifndef SSI_KEPT_H
#define SSI_KEPT_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pages.h"
#include "traced.h"

#define SERVER_NAME "ssi-pages"

/* -- who keeps it ----------------------------------------------------------------------------- */

static bool is_stopped(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, __WALL) < 0)
		if (errno != EINTR)
			return false;
	return WIFSTOPPED(status);
}

/* Has it wait in the kernel, where only its death disturbs it. Returns 0, or a negative errno. */
static int put_to_rest(const struct traced *task, pid_t pid)
{
	struct user_regs_struct regs = task->before;
	int status;

	if (!is_stopped(pid))
		return -ESRCH;
	regs.rip = task->instruction;
	regs.rax = SYS_pause;
	regs.orig_rax = UINT64_MAX;
	if (ptrace(PTRACE_SETREGS, pid, NULL, &regs))
		return -errno;
	do
		if (!go_on(pid, &status, pid) || ptrace(PTRACE_GETREGS, pid, NULL, &regs))
			return -ESRCH;
	while (WSTOPSIG(status) != (SIGTRAP | 0x80) || regs.orig_rax != SYS_pause);
	return 0;
}

/* By who is born between: its child is nobody's whom the process knows, and has no descriptors. It is in no session
 * that somebody may come back to. */
static long bear_keeper(const struct traced *task, pid_t between)
{
	struct traced one = *task;
	long result;

	one.pid = between;
	if (!is_stopped(between))
		return -ESRCH;
	result = call(&one, SYS_close_range, 0, UINT_MAX, 0, 0, 0);
	if (!result)
		result = call(&one, SYS_setsid, 0, 0, 0, 0, 0);
	if (result >= 0)
		result = call(&one, SYS_clone, CLONE_VM, 0, 0, 0, 0);
	if (result > 0) {
		const int failure = put_to_rest(task, (pid_t)result);

		if (failure) {
			(void)kill((pid_t)result, SIGKILL);
			result = failure;
		}
	}
	return result;
}

/* Returns who keeps the memory of a process from now on, or a negative errno. He is traced. */
static pid_t keep_memory(pid_t pid)
{
	struct traced task;
	long between, keeper = begin_calls(&task, pid, PTRACE_O_TRACECLONE);
	int status;

	if (keeper)
		return (pid_t)keeper;
	keeper = between = call(&task, SYS_clone, CLONE_VM, 0, 0, 0, 0);
	if (between > 0) {
		keeper = bear_keeper(&task, (pid_t)between);
		(void)kill((pid_t)between, SIGKILL);
		while (waitpid((pid_t)between, &status, __WALL) > 0 && WIFSTOPPED(status))
			continue;
		(void)call(&task, SYS_wait4, (uint64_t)between, 0, __WALL, 0, 0);
	}
	end_calls(&task);
	return (pid_t)keeper;
}

/* -- who serves it ---------------------------------------------------------------------------- */

static int open_memory(pid_t pid)
{
	char path[64];

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/mem", pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* What the process itself may not read is read by its file, which takes a copy more. */
static bool read_memory(pid_t pid, int memory, uint64_t address, char *bytes, size_t size)
{
	while (size) {
		struct iovec own = { .iov_base = bytes, .iov_len = size };
		struct iovec kept = { .iov_base = (void *)(uintptr_t)address, .iov_len = size }; // NOLINT
		ssize_t some = process_vm_readv(pid, &own, 1, &kept, 1, 0);

		if (some < 0 && errno == EFAULT)
			some = pread(memory, bytes, size, (off_t)address);
		if (some <= 0)
			return false;
		bytes += some;
		address += (uint64_t)some;
		size -= (size_t)some;
	}
	return true;
}

static bool send_all(int connection, const char *bytes, size_t size)
{
	while (size) {
		const ssize_t some = send(connection, bytes, size, MSG_NOSIGNAL);

		if (some < 0 && errno != EINTR)
			return false;
		bytes += some > 0 ? some : 0;
		size -= some > 0 ? (size_t)some : 0;
	}
	return true;
}

/* What runs elsewhere needs it. Whoever has the same memory is spared as well. */
static void spare(pid_t pid)
{
	char path[64];
	int file;

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/oom_score_adj", pid);
	file = open(path, O_WRONLY | O_CLOEXEC);
	if (file >= 0) {
		(void)!write(file, "-1000", 5);
		(void)close(file);
	}
}

/* Sends what is asked for, until enough has been. */
static void send_pages(int connection, pid_t pid, pid_t keeper)
{
	static struct piece piece;
	const int memory = open_memory(keeper);
	struct order order;
	bool is_spared = false;

	while (recv(connection, &order, sizeof(order), MSG_WAITALL) == sizeof(order)) {
		const size_t size = (size_t)order.pages * PAGE;

		/* As long as the process has it as well, that would be spared. */
		if (!is_spared && syscall(SYS_kcmp, pid, keeper, KCMP_VM, 0, 0)) {
			is_spared = true;
			spare(keeper);
		}
		if (order.command != GET || order.pages > PIECE ||
		    !read_memory(keeper, memory, order.address, piece.pages, size))
			return;
		piece.head = order;
		piece.head.command = ADD;
		if (!send_all(connection, (const char *)&piece, sizeof(piece.head) + size))
			return;
	}
}

/* Has a process of its own serve what somebody keeps; who keeps it ends with that. Returns 0, or a negative errno. */
static int serve(int connection, pid_t pid, pid_t keeper)
{
	int told[2];
	pid_t server;
	char byte;

	if (pipe2(told, O_CLOEXEC))
		return -errno;
	server = fork();
	if (server) {
		/* Traced by us until now, and from a moment later on by the server, it ends with who is killed. */
		(void)ptrace(PTRACE_DETACH, keeper, NULL, NULL);
		(void)close(told[0]);
		(void)close(told[1]);
		return server < 0 ? -EAGAIN : 0;
	}
	(void)close(told[1]);
	while (read(told[0], &byte, sizeof(byte)) < 0 && errno == EINTR)
		continue;
	if (ptrace(PTRACE_SEIZE, keeper, NULL, PTRACE_O_EXITKILL))
		_exit(EXIT_FAILURE);
	(void)dup2(connection, STDIN_FILENO);
	(void)close_range(STDIN_FILENO + 1, UINT_MAX, 0);
	spare(getpid());
	(void)prctl(PR_SET_NAME, SERVER_NAME);
	(void)setsid();
	send_pages(STDIN_FILENO, pid, keeper);
	_exit(EXIT_SUCCESS);
}

#endif
