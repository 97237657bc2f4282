/*
 * The memory of a process that leaves, sent at once: straight from there, by who keeps it.
 */
#ifndef SSI_SENT_H
#define SSI_SENT_H

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kept.h"
#include "pages.h"
#include "traced.h"

/* So much is sent by a call: who watches us sees that we do something. */
enum { MOST = 64 << 20 };

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
	const uint64_t place = find_room(keeper);
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

#endif
