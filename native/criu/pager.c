/*
 * pager LISTENER CONNECTION PAGES: brings the memory of a process that goes on here before all of it has come.
 *
 * CRIU connects to LISTENER and gives a descriptor by which the kernel says what the process touches that is
 * missing (userfaultfd(2)). On the other side of CONNECTION is who serves them where it came from (kept.h). PAGES says where they are missing: addresses and numbers of pages, in pairs.
 *
 * What is touched comes first, then all the rest. Who is born meanwhile misses the same pages. The end is
 * silent; a process whose memory is lost is killed, and so is whoever was born of it and touches what is lost.
 *
 * There are two of us with the same descriptors. If the one that brings pages fails, or is killed, the other
 * still has the missing pages wait, which would be zeros otherwise, and does the killing. SIGUSR1 says that
 * the node with the pages is dead.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pages.h"

enum { LEAST = 8, DEPTH = 3, SPACES = 512, WANTED = 256, MESSAGES = 16 };
enum { ARGUMENTS = 4, LOOK_MS = 500, NOWHERE = 0x10000, HIGHEST_BIT = 47, LOWEST_BIT = 30 };

/* As CRIU has it: criu/uffd.c. */
static const uint32_t RESTORED = 0x52535446;

/* Pages that are missing at an address, and where they were when the process left. */
struct range {
	uint64_t at, source, pages;
};

struct space {
	struct range *ranges;
	size_t count, room;
};

struct request {
	uint64_t source, pages;
};

/* An address space each, by their places here; 0 is none. Both of us know them. */
static int *descriptors;

static struct space spaces[SPACES];
static struct request asked[DEPTH];
static uint64_t wanted[WANTED];
static size_t asked_count, wanted_count;
static uint64_t cursor;
/* How many pages are asked for that nobody has touched: few while it touches others. */
static uint64_t quiet = LEAST;
static int connection;
static pid_t process;
static bool restored;

static struct piece piece;
static size_t come;

static void __attribute__((noreturn)) fail(const char *what)
{
	(void)fprintf(stderr, "pager: process %d: %s%s%s\n", process, what, errno ? ": " : "",
		      errno ? strerror(errno) : "");
	exit(EXIT_FAILURE);
}

/* -- what is missing -------------------------------------------------------------------------- */

static void add(struct space *space, uint64_t at, uint64_t source, uint64_t pages)
{
	if (space->count == space->room) {
		space->room = space->room * 2 + 16;
		space->ranges = reallocarray(space->ranges, space->room, sizeof(*space->ranges));
		if (!space->ranges)
			fail("no memory");
	}
	space->ranges[space->count++] = (struct range){ at, source, pages };
}

/* Takes out what lies between two addresses, and puts it elsewhere if that is wished. */
static void cut(struct space *space, uint64_t start, uint64_t end, struct space *out, uint64_t shift)
{
	for (size_t i = space->count; i-- > 0;) {
		const struct range one = space->ranges[i];
		const uint64_t stop = one.at + one.pages * PAGE;
		const uint64_t from = start > one.at ? start : one.at, to = end < stop ? end : stop;

		if (from >= to)
			continue;
		space->ranges[i] = space->ranges[--space->count];
		if (one.at < from)
			add(space, one.at, one.source, (from - one.at) / PAGE);
		if (to < stop)
			add(space, to, one.source + (to - one.at), (stop - to) / PAGE);
		if (out)
			add(out, from + shift, one.source + (from - one.at), (to - from) / PAGE);
	}
}

static void move(struct space *space, uint64_t from, uint64_t to, uint64_t size)
{
	struct space moved = { .ranges = NULL };

	cut(space, from, from + size, &moved, to - from);
	for (size_t i = 0; i < moved.count; i++)
		add(space, moved.ranges[i].at, moved.ranges[i].source, moved.ranges[i].pages);
	free(moved.ranges);
}

static void forget(size_t place)
{
	const int fd = descriptors[place];

	descriptors[place] = 0;
	free(spaces[place].ranges);
	spaces[place] = (struct space){ .ranges = NULL };
	(void)close(fd);
}

static size_t find_place(void)
{
	for (size_t i = 0; i < SPACES; i++)
		if (!descriptors[i])
			return i;
	errno = ENOSPC;
	fail("too many children");
}

static void bear(size_t parent, int fd)
{
	const size_t place = find_place();

	descriptors[place] = fd;
	for (size_t i = 0; i < spaces[parent].count; i++) {
		const struct range *one = &spaces[parent].ranges[i];

		add(&spaces[place], one->at, one->source, one->pages);
	}
}

/* -- the kernel's side ------------------------------------------------------------------------ */

static bool is_gone(void)
{
	return errno == ESRCH || errno == ENOSPC;
}

static void wake(int fd, uint64_t at)
{
	struct uffdio_range range = { .start = at, .len = PAGE };

	(void)ioctl(fd, UFFDIO_WAKE, &range);
}

static void touch(size_t place, uint64_t at)
{
	struct uffdio_zeropage zero = { .range = { .start = at, .len = PAGE } };
	const struct space *space = &spaces[place];

	for (size_t i = 0; i < space->count; i++) {
		const struct range *one = &space->ranges[i];

		if (at < one->at || at >= one->at + one->pages * PAGE)
			continue;
		if (wanted_count < WANTED)
			wanted[wanted_count++] = one->source + (at - one->at);
		else
			wake(descriptors[place], at);	/* it asks again */
		return;
	}
	/* Never used, or given back; if it has come meanwhile, or something changes, it looks again. */
	if (ioctl(descriptors[place], UFFDIO_ZEROPAGE, &zero))
		wake(descriptors[place], at);
}

static void hear(size_t place)
{
	struct uffd_msg messages[MESSAGES];
	const ssize_t size = read(descriptors[place], messages, sizeof(messages));

	if (size < 0 && errno != EAGAIN && errno != EINTR)
		fail("what the kernel says");
	for (size_t i = 0; size > 0 && i < (size_t)size / sizeof(*messages); i++) {
		const struct uffd_msg *one = &messages[i];

		switch (one->event) {
		case UFFD_EVENT_PAGEFAULT:
			touch(place, one->arg.pagefault.address & ~(uint64_t)(PAGE - 1));
			break;
		case UFFD_EVENT_FORK:
			bear(place, (int)one->arg.fork.ufd);
			break;
		case UFFD_EVENT_REMAP:
			move(&spaces[place], one->arg.remap.from, one->arg.remap.to, one->arg.remap.len);
			break;
		case UFFD_EVENT_REMOVE:
		case UFFD_EVENT_UNMAP:
			cut(&spaces[place], one->arg.remove.start, one->arg.remove.end, NULL, 0);
			break;
		default:
			break;
		}
	}
}

/* Fills some of what is missing; the space may have changed since. */
static void fill(size_t place, uint64_t at, const char *data, uint64_t size)
{
	struct uffdio_copy copy = { .dst = at, .src = (uintptr_t)data, .len = size };

	if (ioctl(descriptors[place], UFFDIO_COPY, &copy) == 0 || copy.copy > 0) {
		cut(&spaces[place], at, at + (uint64_t)copy.copy, NULL, 0);
	} else if (is_gone()) {
		forget(place);
	} else if (errno == EAGAIN) {
		/* It is changing its memory: first we have to have heard of that. */
		hear(place);
		(void)sched_yield();
	} else if (size > PAGE && (errno == ENOENT || errno == EEXIST)) {
		/* The kernel wants to be asked for each mapping. */
		fill(place, at, data, PAGE);
	} else if ((errno == ENOENT && restored) || errno == EEXIST) {
		cut(&spaces[place], at, at + PAGE, NULL, 0);
		wake(descriptors[place], at);
	} else {
		fail("pages cannot be put in place");
	}
}

/* Tells whether something of a piece is still missing there, and fills a part of it. */
static bool fill_some(size_t place, uint64_t source, uint64_t end, const char *data)
{
	const struct space *space = &spaces[place];

	for (size_t i = 0; i < space->count; i++) {
		const struct range one = space->ranges[i];
		const uint64_t stop = one.source + one.pages * PAGE;
		const uint64_t from = source > one.source ? source : one.source;
		const uint64_t to = end < stop ? end : stop;

		if (from < to) {
			fill(place, one.at + (from - one.source), data + (from - source), to - from);
			return true;
		}
	}
	return false;
}

/* -- the other side --------------------------------------------------------------------------- */

/* Shortens what is to be asked for by what has been asked for; false if nothing is left. */
static bool leave_out_asked(uint64_t *from, uint64_t *to)
{
	for (size_t round = 0; round < asked_count; round++)
		for (size_t i = 0; i < asked_count; i++) {
			const uint64_t start = asked[i].source, end = start + asked[i].pages * PAGE;

			if (start <= *from && *from < end)
				*from = end;
			else if (*from < start && start < *to)
				*to = start;
		}
	return *from < *to;
}

/* Finds what is missing from an address on, of which not more than so many pages are wanted. */
static bool find_missing(uint64_t least, uint64_t pages, struct request *found)
{
	for (size_t place = 0; place < SPACES; place++)
		for (size_t i = 0; i < spaces[place].count; i++) {
			const struct range *one = &spaces[place].ranges[i];
			uint64_t from = one->source, to = from + one->pages * PAGE;

			if (from < least)
				from = least;
			if (from >= to || !leave_out_asked(&from, &to))
				continue;
			found->source = from;
			found->pages = (to - from) / PAGE < pages ? (to - from) / PAGE : pages;
			return true;
		}
	return false;
}

static bool is_asked(uint64_t source)
{
	for (size_t i = 0; i < asked_count; i++)
		if (source >= asked[i].source && source < asked[i].source + asked[i].pages * PAGE)
			return true;
	return false;
}

static bool is_missing(uint64_t source, uint64_t *pages)
{
	for (size_t place = 0; place < SPACES; place++)
		for (size_t i = 0; i < spaces[place].count; i++) {
			const struct range *one = &spaces[place].ranges[i];
			const uint64_t end = one->source + one->pages * PAGE;

			if (source >= one->source && source < end) {
				*pages = (end - source) / PAGE;
				return true;
			}
		}
	return false;
}

static bool choose(struct request *next)
{
	while (wanted_count) {
		const uint64_t source = wanted[0];
		/* What is mapped is not all known to the kernel yet. */
		const uint64_t most = restored ? LEAST : 1;
		uint64_t pages;

		memmove(wanted, wanted + 1, --wanted_count * sizeof(*wanted));
		if (is_asked(source) || !is_missing(source, &pages))
			continue;
		*next = (struct request){ source, pages < most ? pages : most };
		/* What it uses next is often behind. */
		cursor = source + next->pages * PAGE;
		quiet = LEAST;
		return true;
	}
	/* What is touched next would have to wait behind it. */
	if (!restored || (asked_count && quiet < PIECE))
		return false;
	if (!find_missing(cursor, quiet, next) && !find_missing(0, quiet, next))
		return false;
	cursor = next->source + next->pages * PAGE;
	quiet = 2 * quiet < PIECE ? 2 * quiet : PIECE;
	return true;
}

static void ask(void)
{
	struct request next;

	while (asked_count < DEPTH && choose(&next)) {
		const struct order order = { GET, (uint32_t)next.pages, next.source, (uint64_t)process };

		if (send(connection, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order))
			fail("pages cannot be asked for");
		asked[asked_count++] = next;
	}
}

static void take(void)
{
	const bool has_head = come >= sizeof(piece.head);
	const size_t whole = has_head ? sizeof(piece.head) + piece.head.pages * PAGE : sizeof(piece.head);
	const ssize_t size = recv(connection, (char *)&piece + come, whole - come, MSG_DONTWAIT);
	const uint64_t source = piece.head.address;

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size == 0)
		errno = ECONNRESET;
	if (size <= 0)
		fail("the node with its pages is out of reach");
	come += (size_t)size;
	if (come < whole)
		return;
	if (!has_head) {
		/* There may be less than was asked for, not more. */
		if ((piece.head.command & ((1 << COMMAND_BITS) - 1)) != ADD || !asked_count ||
		    source != asked[0].source || !piece.head.pages || piece.head.pages > asked[0].pages)
			fail("other pages came");
		return;
	}
	for (size_t place = 0; place < SPACES; place++)
		while (descriptors[place] &&
		       fill_some(place, source, source + piece.head.pages * PAGE, piece.pages))
			continue;
	come = 0;
	memmove(asked, asked + 1, --asked_count * sizeof(*asked));
}

/* -- who restores it -------------------------------------------------------------------------- */

static int receive_descriptor(int from)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec part = { .iov_base = &byte, .iov_len = sizeof(byte) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *head;
	int fd;

	if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) <= 0)
		fail("it is not restored");
	head = CMSG_FIRSTHDR(&message);
	if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
		fail("CRIU gives no descriptor");
	memcpy(&fd, CMSG_DATA(head), sizeof(fd));
	return fd;
}

static int meet_restorer(int listener)
{
	struct pollfd both[2] = { { .fd = listener, .events = POLLIN }, { .fd = connection, .events = POLLIN } };
	int criu;

	while (poll(both, 2, -1) < 0 && errno == EINTR)
		continue;
	/* Nothing comes that was not asked for: it stays where it was. */
	if (both[1].revents)
		fail("it does not come");
	criu = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (criu < 0 || recv(criu, &process, sizeof(process), MSG_WAITALL) != sizeof(process))
		fail("it is not restored");
	(void)close(listener);
	descriptors[0] = receive_descriptor(criu);
	return criu;
}

static void hear_restorer(int *criu)
{
	uint32_t word = 0;

	if (recv(*criu, &word, sizeof(word), MSG_WAITALL) != sizeof(word) || word != RESTORED)
		fail("it is not restored");
	restored = true;
	(void)close(*criu);
	*criu = -1;
}

/* -- two of us -------------------------------------------------------------------------------- */

static bool is_all_here(void)
{
	for (size_t i = 0; i < SPACES; i++)
		if (spaces[i].count)
			return false;
	return restored;
}

static void bring(int criu)
{
	const struct order end = { .command = CLOSE };

	while (!is_all_here()) {
		struct pollfd polled[SPACES + 2];
		size_t places[SPACES], count = 0;

		ask();
		for (size_t i = 0; i < SPACES; i++)
			if (descriptors[i]) {
				places[count] = i;
				polled[count++] = (struct pollfd){ .fd = descriptors[i], .events = POLLIN };
			}
		polled[count] = (struct pollfd){ .fd = connection, .events = POLLIN };
		polled[count + 1] = (struct pollfd){ .fd = criu, .events = POLLIN };
		if (poll(polled, count + 2, -1) < 0 && errno != EINTR)
			fail("poll");
		for (size_t i = 0; i < count; i++)
			if (polled[i].revents)
				hear(places[i]);
		if (polled[count].revents)
			take();
		if (polled[count + 1].revents)
			hear_restorer(&criu);
	}
	(void)send(connection, &end, sizeof(end), MSG_NOSIGNAL);
	for (size_t i = 0; i < SPACES; i++)
		if (descriptors[i])
			forget(i);
}

/* Has who waits for what is lost come again, and say who he is. */
static void wake_all(int fd)
{
	for (int bit = HIGHEST_BIT; bit > LOWEST_BIT; bit--) {
		struct uffdio_range range = { .start = NOWHERE, .len = ((uint64_t)1 << bit) - NOWHERE };

		if (!ioctl(fd, UFFDIO_WAKE, &range))
			return;
	}
}

static bool has_end(int fd)
{
	struct uffdio_copy copy = { .dst = NOWHERE, .src = (uintptr_t)&piece, .len = PAGE };

	return ioctl(fd, UFFDIO_COPY, &copy) && is_gone();
}

/* Kills who touches what is lost, until there is nobody left who could. */
static void end_all(int main_process)
{
	bool any = true;

	(void)syscall(SYS_pidfd_send_signal, main_process, SIGKILL, NULL, 0);
	while (any) {
		struct pollfd polled[SPACES];

		any = false;
		for (size_t i = 0; i < SPACES; i++) {
			struct uffd_msg one;

			polled[i] = (struct pollfd){ .fd = descriptors[i] ? descriptors[i] : -1, .events = POLLIN };
			if (!descriptors[i])
				continue;
			wake_all(descriptors[i]);
			while (read(descriptors[i], &one, sizeof(one)) == sizeof(one))
				if (one.event == UFFD_EVENT_PAGEFAULT)
					(void)kill((pid_t)one.arg.pagefault.feat.ptid, SIGKILL);
				else if (one.event == UFFD_EVENT_FORK)
					descriptors[find_place()] = (int)one.arg.fork.ufd;
			if (has_end(descriptors[i]))
				forget(i);
			else
				any = true;
		}
		if (any)
			(void)poll(polled, SPACES, LOOK_MS);
	}
}

static void read_missing(int file)
{
	uint64_t pair[2];

	while (read(file, pair, sizeof(pair)) == sizeof(pair))
		add(&spaces[0], pair[0], pair[0], pair[1]);
	(void)close(file);
}

static void stay(void)
{
	const int signals[] = { SIGHUP, SIGINT, SIGTERM, SIGPIPE, SIGUSR1 };
	const int file = open("/run/ssi/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		(void)signal(signals[i], SIG_IGN);
	if (file >= 0) {
		(void)!write(file, "-1000", 5);
		(void)close(file);
	}
}

int main(int argc, char **argv)
{
	int criu, main_process, status = 0;
	pid_t other;

	if (argc != ARGUMENTS)
		return 2;
	connection = (int)strtol(argv[2], NULL, 10);
	descriptors = mmap(NULL, SPACES * sizeof(*descriptors), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (descriptors == MAP_FAILED)
		fail("no memory");
	stay();
	read_missing((int)strtol(argv[3], NULL, 10));
	criu = meet_restorer((int)strtol(argv[1], NULL, 10));
	main_process = (int)syscall(SYS_pidfd_open, process, 0);
	if (main_process < 0)
		fail("it has ended");
	/* As fork(2), but what one has open the other has. */
	other = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);
	if (other < 0)
		fail("fork");
	if (other == 0) {
		(void)signal(SIGUSR1, SIG_DFL);
		bring(criu);
		_exit(EXIT_SUCCESS);
	}
	while (waitpid(other, &status, 0) < 0 && errno == EINTR)
		continue;
	if (status) {
		(void)fprintf(stderr, "pager: process %d is killed: memory of it is lost\n", process);
		(void)close(connection);
		end_all(main_process);
	}
	return status != 0;
}
