/*
 * The memory of a process that leaves: kept by a process that shares it and never runs, and sent by that at once,
 * or served to who brings it when the process goes on (pager.c).
 */
#ifndef SSI_KEPT_H
#define SSI_KEPT_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
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

/* As linux/futex.h has it; and more than a red zone. */
enum { ROBUST_SIZE = 24, BELOW = 1024 };

/* So much is sent by a call: who watches us sees that we do something. */
enum { MOST = 64 << 20 };

/* Older headers have no name for it. */
#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

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

/* -- reading and sending it ------------------------------------------------------------------- */

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

/* -- what its end would write ----------------------------------------------------------------- */

/* A thread, and what the kernel does to its memory when it ends or execs: it has others know that. */
struct loose {
	struct traced traced;
	uint64_t word, robust;
};

struct looses {
	struct loose *all;
	size_t count;
};

/* Returns the address of the word that the kernel clears. It says so only to the thread, in its memory: below
 * what is on its stack, where all is as it was behind that. Returns 0, or a negative errno. */
static int ask_word(struct loose *thread)
{
	const pid_t pid = thread->traced.pid;
	const uint64_t place = (thread->traced.before.rsp - BELOW) & ~(uint64_t)15;
	struct iovec there = { .iov_base = (void *)(uintptr_t)place, .iov_len = sizeof(uint64_t) }; // NOLINT
	uint64_t was;
	struct iovec own = { .iov_base = &was, .iov_len = sizeof(was) };
	struct iovec word = { .iov_base = &thread->word, .iov_len = sizeof(thread->word) };
	long result;

	if (process_vm_readv(pid, &own, 1, &there, 1, 0) != sizeof(was))
		return -errno;
	result = call(&thread->traced, SYS_prctl, PR_GET_TID_ADDRESS, place, 0, 0, 0);
	if (!result && process_vm_readv(pid, &word, 1, &there, 1, 0) != sizeof(was))
		result = -errno;
	(void)process_vm_writev(pid, &own, 1, &there, 1, 0);
	return (int)result;
}

static int loosen_thread(struct loose *thread, pid_t pid)
{
	size_t size;
	int result = begin_calls(&thread->traced, pid, 0);

	if (result)
		return result;
	if (syscall(SYS_get_robust_list, pid, &thread->robust, &size))
		result = -errno;
	if (!result)
		result = ask_word(thread);
	if (!result)
		result = (int)call(&thread->traced, SYS_set_robust_list, 0, ROBUST_SIZE, 0, 0, 0);
	if (!result)
		(void)call(&thread->traced, SYS_set_tid_address, 0, 0, 0, 0, 0);
	end_calls(&thread->traced);
	return result;
}

/* The process runs on after all. */
static void tie(struct looses *threads)
{
	for (size_t i = 0; i < threads->count; i++) {
		struct loose *thread = &threads->all[i];

		if (!begin_calls(&thread->traced, thread->traced.pid, 0)) {
			(void)call(&thread->traced, SYS_set_robust_list, thread->robust, ROBUST_SIZE, 0, 0, 0);
			(void)call(&thread->traced, SYS_set_tid_address, thread->word, 0, 0, 0, 0);
			end_calls(&thread->traced);
		}
	}
	free(threads->all);
	*threads = (struct looses){ .all = NULL };
}

/* Has the end of a process's threads change nothing in the memory that is kept. Returns 0, or a negative errno. */
static int loosen(pid_t pid, struct looses *threads)
{
	uint64_t instruction = 0;
	struct dirent *entry;
	char path[64];
	int result = 0;
	DIR *folder;

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/task", pid);
	folder = opendir(path);
	if (!folder)
		return -errno;
	while (!result && (entry = readdir(folder))) {
		const pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
		struct loose *more = thread ? reallocarray(threads->all, threads->count + 1, sizeof(*more)) : NULL;

		if (!thread)
			continue;
		if (!more) {
			result = -ENOMEM;
			break;
		}
		threads->all = more;
		more += threads->count;
		*more = (struct loose){ .traced.instruction = instruction };
		result = loosen_thread(more, thread);
		instruction = more->traced.instruction;
		threads->count += !result;
	}
	(void)closedir(folder);
	if (result)
		tie(threads);
	return result;
}

/* -- all of it at once ------------------------------------------------------------------------ */

/* Returns a socket of which the other end is the first descriptor of who keeps, who has no others. */
static int connect_keeper(const struct traced *keeper, uint64_t place)
{
	const int process = (int)syscall(SYS_pidfd_open, keeper->pid, 0);
	int own = -1;

	if (process >= 0 && !call(keeper, SYS_socketpair, AF_UNIX, SOCK_DGRAM, 0, place, 0))
		own = (int)syscall(SYS_pidfd_getfd, process, 1, 0);
	if (process >= 0)
		(void)close(process);
	return own;
}

static bool send_descriptor(int to, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(fd))];
	} control = { .bytes = { 0 } };
	char byte = 0;
	struct iovec part = { .iov_base = &byte, .iov_len = sizeof(byte) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	return sendmsg(to, &message, MSG_NOSIGNAL) == sizeof(byte);
}

/* What it needs to take a descriptor: where it is in its memory, there is room for the rest of it as well. */
struct taking {
	struct msghdr message;
	struct iovec part;
	char control[CMSG_SPACE(sizeof(int))], byte;
};

/* Has who keeps have a descriptor of ours; returns its number there, or a negative errno. Its stack is as it was
 * behind that, as it is the process's. */
static int give(const struct traced *keeper, int fd)
{
	const uint64_t place = (keeper->before.rsp - BELOW) & ~(uint64_t)15;
	struct taking was, taking = {
		.message = {
			.msg_iov = (struct iovec *)(uintptr_t)(place + offsetof(struct taking, part)), .msg_iovlen = 1, // NOLINT
			.msg_control = (void *)(uintptr_t)(place + offsetof(struct taking, control)), // NOLINT
			.msg_controllen = sizeof(taking.control),
		},
		.part = {
			.iov_base = (void *)(uintptr_t)(place + offsetof(struct taking, byte)), .iov_len = 1, // NOLINT
		},
	};
	struct iovec there = { .iov_base = (void *)(uintptr_t)place, .iov_len = sizeof(taking) }; // NOLINT
	struct iovec before = { .iov_base = &was, .iov_len = sizeof(was) };
	struct iovec here = { .iov_base = &taking, .iov_len = sizeof(taking) };
	int own, result = -EIO;

	if (process_vm_readv(keeper->pid, &before, 1, &there, 1, 0) != sizeof(was))
		return -errno;
	own = connect_keeper(keeper, place);
	if (own >= 0 && send_descriptor(own, fd) &&
	    process_vm_writev(keeper->pid, &here, 1, &there, 1, 0) == sizeof(taking) &&
	    call(keeper, SYS_recvmsg, 0, place, 0, 0, 0) == 1)
		result = 2;
	(void)process_vm_writev(keeper->pid, &before, 1, &there, 1, 0);
	if (own >= 0)
		(void)close(own);
	return result;
}

/* By who keeps it, straight from its memory; few pages, and what it may not read, by us. */
static bool send_region(const struct traced *keeper, int connection, int there, int memory,
			const struct region *region)
{
	static char bytes[PIECE * PAGE];
	const struct order head = {
		.command = ADD | PRESENT << COMMAND_BITS, .pages = (uint32_t)region->pages, .address = region->start,
	};
	uint64_t at = region->start, left = region->pages * PAGE;

	if (!send_all(connection, (const char *)&head, sizeof(head)))
		return false;
	while (left) {
		const uint64_t most = left < MOST ? left : MOST;
		long sent = -EFAULT;

		if (left > sizeof(bytes))
			sent = call(keeper, SYS_write, (uint64_t)there, at, most, 0, 0);
		if (sent == -EFAULT) {
			sent = (long)(left < sizeof(bytes) ? left : sizeof(bytes));
			if (!read_memory(keeper->pid, memory, at, bytes, (size_t)sent) ||
			    !send_all(connection, bytes, (size_t)sent))
				return false;
		}
		if (sent <= 0)
			return false;
		at += (uint64_t)sent;
		left -= (uint64_t)sent;
	}
	return true;
}

static int compare(const void *one, const void *other)
{
	const struct region *first = one, *second = other;

	return (first->start > second->start) - (first->start < second->start);
}

/* Reads what preload.c has written down, in order; some of it may be there twice. NULL: it cannot be read. */
static struct region *read_regions(int file, size_t *count)
{
	const off_t size = lseek(file, 0, SEEK_END);
	struct region *regions = size < 0 ? NULL : malloc((size_t)size + 1);
	uint64_t known = 0;

	if (!regions || pread(file, regions, (size_t)size, 0) != size) {
		free(regions);
		return NULL;
	}
	*count = (size_t)size / sizeof(*regions);
	qsort(regions, *count, sizeof(*regions), compare);
	for (struct region *one = regions; one < regions + *count; one++) {
		const uint64_t stop = one->start + one->pages * PAGE;

		one->start = one->start > known ? one->start : known;
		one->pages = stop > one->start ? (stop - one->start) / PAGE : 0;
		known = stop > known ? stop : known;
	}
	return regions;
}

/* Sends the memory of a process that we trace, of which a file says where it is. Returns 0, or a negative errno. */
static int send_memory(int connection, int file, pid_t pid)
{
	const struct order last = { .command = CLOSE };
	struct traced keeper = { .pid = keep_memory(pid) };
	size_t count = 0;
	struct region *regions = read_regions(file, &count);
	int there, memory, status, result = keeper.pid;

	if (keeper.pid > 0) {
		keeper.instruction = find_instruction(pid);
		result = ptrace(PTRACE_GETREGS, keeper.pid, NULL, &keeper.before) ? -errno : 0;
		there = give(&keeper, connection);
		memory = open_memory(keeper.pid);
		result = there < 0 ? there : result;
		for (size_t i = 0; !result && i < count; i++)
			if (regions[i].pages && !send_region(&keeper, connection, there, memory, &regions[i]))
				result = -EIO;
		if (!result && (!regions || !send_all(connection, (const char *)&last, sizeof(last))))
			result = -EIO;
		(void)close(memory);
		(void)kill(keeper.pid, SIGKILL);
		while (waitpid(keeper.pid, &status, __WALL) > 0 && WIFSTOPPED(status))
			continue;
	}
	free(regions);
	return result;
}

/* -- who serves it ---------------------------------------------------------------------------- */

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
