/*
 * What keepers have in common: programs that have something for the node daemon, and live on when that
 * is killed. It orders, one packet an order; a new daemon takes the place of the one before. They run
 * as root in the ramdisk's mount namespace. ssi.node.keeper is the daemon's side.
 */
#ifndef SSI_KEEPER_H
#define SSI_KEEPER_H

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	KEEPER_LISTENER = 0,	/* places among what is polled */
	KEEPER_DAEMON = 1,
	KEEPER_OTHERS = 2,
	KEEPER_DESCRIPTORS = 16384,
};

static int keeper_listener = -1, keeper_daemon = -1;

static int keeper_listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, strlen(path));
	(void)unlink(path);
	if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) || listen(fd, 4))
		return -1;
	return fd;
}

/* Listens at `path`; says so as `name` if it cannot. */
static bool keeper_begin(const char *name, const char *path)
{
	const struct rlimit limit = { .rlim_cur = KEEPER_DESCRIPTORS, .rlim_max = KEEPER_DESCRIPTORS };

	(void)signal(SIGPIPE, SIG_IGN);
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	keeper_listener = keeper_listen_at(path);
	if (keeper_listener < 0) {
		(void)fprintf(stderr, "%s: %s: %s\n", name, path, strerror(errno));
		return false;
	}
	/* Its text is on the root, and it must go on while that recovers. */
	(void)mlockall(MCL_CURRENT);
	return true;
}

/* What is numbered from here on has no number that something had in a keeper before this one. */
static inline uint32_t keeper_first_number(void)
{
	struct timespec now = { 0 };

	(void)clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint32_t)(now.tv_sec * 10) + (uint32_t)(now.tv_nsec / 100000000);
}

/* Returns whether there is a new daemon, which is to be told everything. */
static bool keeper_take_daemon(void)
{
	const int come = accept4(keeper_listener, NULL, NULL, SOCK_CLOEXEC);

	if (come < 0)
		return false;
	if (keeper_daemon >= 0)
		close(keeper_daemon);
	keeper_daemon = come;
	return true;
}

static void keeper_lose_daemon(void)
{
	close(keeper_daemon);
	keeper_daemon = -1;
}

/* Sends a packet, with a descriptor if `fd` is none of -1. */
static bool keeper_send(int to, struct iovec *parts, size_t count, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	}
	return sendmsg(to, &message, MSG_NOSIGNAL) >= 0;
}

/* Says something to the daemon. That it is gone is seen where it is heard. */
static void keeper_say(const void *head, size_t head_length, const void *data, size_t length, int fd)
{
	struct iovec parts[2] = {
		{ .iov_base = (void *)(uintptr_t)head, .iov_len = head_length },
		{ .iov_base = (void *)(uintptr_t)data, .iov_len = length },
	};

	if (keeper_daemon >= 0)
		(void)keeper_send(keeper_daemon, parts, length ? 2 : 1, fd);
}

/* Hears a packet from the daemon, as recv(), with its descriptor in `fd`, or -1. */
static inline ssize_t keeper_hear(void *packet, size_t size, int *fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { .iov_base = packet, .iov_len = size };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
	};
	const ssize_t got = recvmsg(keeper_daemon, &message, MSG_CMSG_CLOEXEC);
	const struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	*fd = -1;
	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(head), sizeof(*fd));
	return got;
}

/*
 * Waits for something to happen to one of `count` places, the first two of which are filled in here;
 * returns how many it has happened to, 0 after `within_ms`, -1 for a signal.
 */
static int keeper_poll(struct pollfd *pollers, size_t count, int within_ms)
{
	pollers[KEEPER_LISTENER] = (struct pollfd){ .fd = keeper_listener, .events = POLLIN };
	pollers[KEEPER_DAEMON] = (struct pollfd){ .fd = keeper_daemon, .events = POLLIN };
	return poll(pollers, count, within_ms);
}

#endif
