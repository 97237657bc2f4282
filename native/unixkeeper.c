/*
 * unixkeeper SOCKET ROOT USERLAND: connections by named Unix sockets whose ends are on two nodes.
 *
 * On the node of the server this process connects to it for the client, on the client's it is what he is
 * connected to; between the two keepers a line, of TCP, carries the bytes. The daemons bring all that
 * together and may be killed then: what is connected goes on. Runs as root in the ramdisk's mount
 * namespace: the kernel asks nobody about what is connected from there, and each end is made as the
 * user and with the PID of who is at the other one. Files that are passed on are opened for those of
 * the userland, whose namespace USERLAND is. Streams stay: the daemon takes them to the keeper of devices.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include "keeper.h"
#include "unixfiles.h"
#include "unixkeeper.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#define SIOCUNIXPID (0x89E0 + 1)	/* image/kernel/patches/unix-elsewhere.patch */
#define SIOCUNIXFILES (0x89E0 + 2)	/* image/kernel/patches/unix-files.patch */
#define SIOCUNIXNAME (0x89E0 + 3)	/* image/kernel/patches/unix-names.patch */

enum {
	PIECE = 64 * 1024,		/* bytes of a stream that go at once */
	MOST_MESSAGE = 448 * 1024,	/* what a socket's buffer may hold at most */
	ROOM_FOR_ENDS = 64,
	MOST_PASSES = 8,		/* for one link, before others have their turn */
	MOST_GROUPS = 1024,
	OF_CONNECT = sizeof(struct unix_file) + sizeof(struct unix_bound),
	MOST_DATA = OF_CONNECT + MOST_GROUPS * sizeof(uint32_t),
	TICK_S = 5,
	MOST_TICKS = 2,
	MOST_HELD = 1024,		/* files of one link that the other side has not opened yet */
	MOST_DESCRIPTORS = 256 * 1024,
	NUMBER_BITS = 47,		/* of a link's first stream: nobody guesses it */
	OWNERS_NODE = 0xff,		/* in what the daemon calls a node */
};

enum state {
	CONNECTING = 1,	/* a child does it */
	CONNECTED = 2,	/* waits for its line */
	AWAITED = 3,	/* the client is to come */
	CARRIED = 4,
	CLOSING = 5,	/* all has been said; the other side is to have read it */
};

struct buffer {
	unsigned char *data;
	size_t begin, end, room;
};

struct files {
	int *fds;
	size_t count, room;
};

struct link {
	struct link *next;
	uint32_t role, owner, type;
	uint64_t id;
	enum state state;
	int local, line;
	int child_says;		/* of CONNECTING: an errno comes from there */
	pid_t child;
	struct unix_client client;
	int process;		/* of datagrams: the client, who may send for as long as he lives */
	unsigned int ticks;
	struct buffer in, out;
	size_t remaining;	/* bytes of a stream's frame that are still to come */
	struct files held;	/* have been told of; the oldest first. -1 is one that was taken */
	uint64_t first;		/* the number of the first of these; they are counted */
	struct files come;	/* go with what comes next */
	uint32_t opened;	/* of those that have come, and the other side does not know yet */
	bool opens;		/* what is first in `in` is a file that is being opened, or is to be */
	bool in_waits;		/* for room in the local socket */
	bool in_broken;		/* nobody takes what comes */
	bool local_ended;	/* nothing more is read from it */
	bool line_ended;	/* nothing more comes from there */
	bool line_mute;		/* nothing more goes there */
	bool finishes;		/* of datagrams: nobody sends any more */
};

struct packet {
	struct unix_order order;
	unsigned char data[MOST_DATA];
};

static struct link *links;
static int root_fd = -1, ticker = -1, opener = -1;
static pid_t opener_pid;
static const char *userland;
static bool opener_is_asked;
static const struct link *opener_asker;	/* if it is still there */

/* -- what the daemon hears -------------------------------------------------------------------- */

static void report(uint32_t kind, const struct link *link, int64_t result, const void *data, size_t length)
{
	const struct unix_report head = { .kind = kind, .role = link->role, .id = link->id, .result = result };

	keeper_say(&head, sizeof(head), data, length, -1);
}

/* -- links ------------------------------------------------------------------------------------ */

static struct link *find_link(uint32_t role, uint64_t id)
{
	struct link *link = links;

	while (link && (link->role != role || link->id != id))
		link = link->next;
	return link;
}

static void close_one(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Closes the first ones. */
static void close_files(struct files *files, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(files->fds[i]);
	files->count -= count;
	if (files->count)
		memmove(files->fds, files->fds + count, files->count * sizeof(*files->fds));
}

/* They are its own from then on, or closed. */
static bool add_files(struct files *files, const int *fds, size_t count)
{
	if (files->count + count > files->room) {
		const size_t room = 2 * (files->count + count);
		void *more = realloc(files->fds, room * sizeof(*fds));

		if (!more) {
			for (size_t i = 0; i < count; i++)
				close(fds[i]);
			return false;
		}
		files->fds = more;
		files->room = room;
	}
	memcpy(files->fds + files->count, fds, count * sizeof(*fds));
	files->count += count;
	return true;
}

static void end(struct link *link)
{
	struct link **place = &links;

	while (*place != link)
		place = &(*place)->next;
	*place = link->next;
	report(UNIX_GONE, link, 0, NULL, 0);
	if (link->child_says >= 0) {
		(void)kill(link->child, SIGKILL);
		(void)waitpid(link->child, NULL, 0);
	}
	close_one(&link->local);
	close_one(&link->line);
	close_one(&link->child_says);
	close_one(&link->process);
	close_files(&link->held, link->held.count);
	close_files(&link->come, link->come.count);
	free(link->held.fds);
	free(link->come.fds);
	if (opener_asker == link)
		opener_asker = NULL;
	free(link->in.data);
	free(link->out.data);
	free(link);
}

/* Of data in a frame. */
static size_t most_of(uint32_t type)
{
	return type == SOCK_STREAM ? PIECE : MOST_MESSAGE;
}

/* Returns a number that nobody guesses, and none of 0. */
static uint64_t make_number(void)
{
	uint64_t number = 0;

	(void)!getrandom(&number, sizeof(number), 0);
	return (number & ((1ULL << NUMBER_BITS) - 1)) | 1;
}

static struct link *add_link(const struct unix_order *order)
{
	const size_t room = most_of(order->type) + sizeof(struct unix_frame) + ROOM_FOR_ENDS;
	struct link *link = calloc(1, sizeof(*link));

	if (!link)
		return NULL;
	*link = (struct link){
		.next = links, .role = order->role, .owner = order->owner, .type = order->type,
		.id = order->id, .local = -1, .line = -1, .child_says = -1, .process = -1, .first = make_number(),
		.in = { .data = malloc(room), .room = room },
		.out = { .data = malloc(room), .room = room },
	};
	links = link;
	return link;
}

static bool has_room(const struct link *link)
{
	return link->in.data && link->out.data;
}

static size_t length_of(const struct buffer *buffer)
{
	return buffer->end - buffer->begin;
}

static bool is_later(void)
{
	return errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
}

static bool has_events(int fd, short events)
{
	struct pollfd poller = { .fd = fd, .events = events };

	return poll(&poller, 1, 0) > 0 && poller.revents & events;
}

/* -- what is carried -------------------------------------------------------------------------- */

static void put_frame(struct link *link, uint32_t kind)
{
	const struct unix_frame frame = { .kind = kind };
	struct buffer *out = &link->out;

	if (link->state != CARRIED || out->room - out->end < sizeof(frame))
		return;
	memcpy(out->data + out->end, &frame, sizeof(frame));
	out->end += sizeof(frame);
}

/* The local one is closed, or as good as that. */
static void begin_closing(struct link *link)
{
	put_frame(link, UNIX_CLOSED);
	link->state = CLOSING;
	close_one(&link->local);
}

static void flush(struct link *link)
{
	struct buffer *out = &link->out;

	while (length_of(out) && !link->line_mute) {
		const ssize_t sent = send(link->line, out->data + out->begin, length_of(out),
					  MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && is_later())
			return;
		if (sent < 0)
			link->line_mute = true;
		else
			out->begin += (size_t)sent;
	}
	out->begin = out->end = 0;
}

/* Anybody may send to a socket whose name he has seen: only what is of the client's user counts. */
static bool is_clients(const struct link *link, struct msghdr *message)
{
	struct cmsghdr *head;

	if (link->type != SOCK_DGRAM)
		return true;
	for (head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		struct ucred sender;

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_CREDENTIALS)
			continue;
		memcpy(&sender, CMSG_DATA(head), sizeof(sender));
		return sender.uid == link->client.uid;
	}
	return false;
}

/* A descriptor that does not arrive must not be missed silently: who reads hears the end instead. */
static void give_up(struct link *link, const char *what, int error)
{
	(void)fprintf(stderr, "unixkeeper: a descriptor that was to be passed on: %s: %s\n", what, strerror(error));
	begin_closing(link);
}

/* Puts what is told of files before `length` bytes of a message that are in `out` without their frame. */
static bool tell_files(struct link *link, const int *fds, size_t count, size_t length)
{
	struct buffer *out = &link->out;
	struct unix_frame frame = { .kind = UNIX_FILE };
	const size_t most = sizeof(frame) + sizeof(struct unix_told), data = sizeof(frame) + length;
	const uint64_t first = link->first + link->held.count - count;
	unsigned char *all = malloc(count * most + data + ROOM_FOR_ENDS);
	size_t at = 0;

	if (!all)
		return false;
	for (size_t i = 0; i < count; i++) {
		struct unix_told told;

		frame.length = (uint32_t)unix_describe(root_fd, fds[i], first + i, &told);
		if (!frame.length) {
			free(all);
			return false;
		}
		memcpy(all + at, &frame, sizeof(frame));
		memcpy(all + at + sizeof(frame), &told, frame.length);
		at += sizeof(frame) + frame.length;
	}
	memcpy(all + at, out->data, data);
	if (at + data + ROOM_FOR_ENDS <= out->room) {
		memcpy(out->data, all, at + data);
		free(all);
	} else {
		free(out->data);
		*out = (struct buffer){ .data = all, .room = count * most + data + ROOM_FOR_ENDS };
	}
	out->end = at + data;
	return true;
}

/* The descriptors that have come with a message; returns how many. */
static size_t take_files(struct msghdr *message, int *fds)
{
	size_t count = 0;

	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		const size_t here = (head->cmsg_len - CMSG_LEN(0)) / sizeof(*fds);

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS ||
		    here > UNIX_MOST_FILES - count)
			continue;
		memcpy(fds + count, CMSG_DATA(head), here * sizeof(*fds));
		count += here;
	}
	return count;
}

/* Puts a message into `out`, where its bytes are already. */
static void put_message(struct link *link, struct msghdr *message, size_t length)
{
	const struct unix_frame frame = { .kind = UNIX_DATA, .length = (uint32_t)length };
	struct buffer *out = &link->out;
	int fds[UNIX_MOST_FILES];
	const size_t count = take_files(message, fds);
	const bool is_theirs = !is_clients(link, message), is_cut = message->msg_flags & MSG_CTRUNC;

	if (is_theirs || is_cut) {
		for (size_t i = 0; i < count; i++)
			close(fds[i]);
		if (!is_theirs)
			give_up(link, "taken", EMFILE);
		return;
	}
	memcpy(out->data, &frame, sizeof(frame));
	if (!count)
		out->end = sizeof(frame) + length;
	else if (!add_files(&link->held, fds, count))
		give_up(link, "held", ENOMEM);
	else if (!tell_files(link, fds, count, length))
		give_up(link, "described", EIO);
}

/* Takes what the local one has said, one piece at a time; returns whether there was something. */
static bool fill_out(struct link *link)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(UNIX_MOST_FILES * sizeof(int))];
	} control;
	const size_t before = sizeof(struct unix_frame);
	struct buffer *out = &link->out;
	struct iovec part = { .iov_base = out->data + before, .iov_len = most_of(link->type) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
	};
	ssize_t got;

	if (length_of(out) || link->local_ended || link->held.count > MOST_HELD)
		return false;
	got = recvmsg(link->local, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && is_later()) {
		if (link->finishes || (link->process >= 0 && has_events(link->process, POLLIN)))
			begin_closing(link);
		return false;
	}
	if (got < 0 || (!got && !message.msg_controllen &&
			(link->type == SOCK_STREAM ||
			 (link->type == SOCK_SEQPACKET && has_events(link->local, POLLRDHUP))))) {
		link->local_ended = true;
		put_frame(link, UNIX_WRITE_ENDED);
		return true;
	}
	put_message(link, &message, (size_t)got);
	return true;
}

static bool fill_in(struct link *link)
{
	struct buffer *in = &link->in;
	ssize_t got;

	if (link->in_waits || link->opens || link->line_ended)
		return false;
	memmove(in->data, in->data + in->begin, length_of(in));
	in->end -= in->begin;
	in->begin = 0;
	got = recv(link->line, in->data + in->end, in->room - in->end, MSG_DONTWAIT);
	if (got < 0 && is_later())
		return false;
	if (got <= 0)
		link->line_ended = true;
	else
		in->end += (size_t)got;
	return true;
}

/* Sends `size` bytes, with the files that have come for them. */
static ssize_t send_on(struct link *link, size_t size)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(UNIX_MOST_FILES * sizeof(int))];
	} control = { 0 };
	struct iovec part = { .iov_base = link->in.data + link->in.begin, .iov_len = size };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	const size_t length = link->come.count * sizeof(*link->come.fds);

	if (length) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(length);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(length);
		memcpy(CMSG_DATA(&control.head), link->come.fds, length);
	}
	return sendmsg(link->local, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Gives `size` bytes to the local one; returns how many are done with. */
static size_t give(struct link *link, size_t size)
{
	const ssize_t sent = link->in_broken ? 0 : send_on(link, size);
	const int error = sent < 0 ? errno : 0;
	const bool had_files = link->come.count;

	if (sent < 0 && is_later()) {
		link->in_waits = true;
		return 0;
	}
	close_files(&link->come, link->come.count);
	if (link->in_broken || (link->type == SOCK_DGRAM && error == EMSGSIZE))
		return size;
	if (sent >= 0)
		return (size_t)sent;
	/* It takes no descriptors. */
	if (error == EPERM && had_files) {
		give_up(link, "given", error);
		return size;
	}
	link->in_broken = true;
	put_frame(link, UNIX_READ_ENDED);
	return size;
}

static void begin_opener(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return;
	opener_pid = fork();
	if (!opener_pid)
		unix_be_opener(root_fd, pair[1], userland);
	close(pair[1]);
	opener = pair[0];
	if (opener_pid < 0)
		close_one(&opener);
}

static void end_opener(void)
{
	if (opener < 0)
		return;
	close_one(&opener);
	(void)kill(opener_pid, SIGKILL);
	(void)waitpid(opener_pid, NULL, 0);
}

/* Has the file opened that is told of first in `in`. */
static bool send_to_opener(const struct link *link)
{
	const struct buffer *in = &link->in;
	struct unix_frame frame;

	memcpy(&frame, in->data + in->begin, sizeof(frame));
	/* The one that there was may have been killed. */
	for (int i = 0; i < 2; i++) {
		if (opener < 0)
			begin_opener();
		if (opener >= 0 &&
		    send(opener, in->data + in->begin + sizeof(frame), frame.length, MSG_NOSIGNAL) >= 0)
			return true;
		end_opener();
	}
	return false;
}

static void ask_opener(struct link *link)
{
	if (opener_is_asked)
		return;
	opener_is_asked = send_to_opener(link);
	if (opener_is_asked) {
		opener_asker = link;
	} else {
		link->opens = false;
		give_up(link, "opened", EAGAIN);
	}
}

/* Who was not asked for while it was asked. */
static void ask_for_next(void)
{
	for (struct link *link = links; link && !opener_is_asked; link = link->next)
		if (link->opens && link->state == CARRIED)
			ask_opener(link);
}

/* Begins with a file, if all that is told of it has come; returns false if that makes no sense. */
static bool begin_file(struct link *link, const struct unix_frame *frame)
{
	const size_t here = length_of(&link->in), before = sizeof(*frame);
	struct unix_passed passed;

	if (frame->length < sizeof(passed) || frame->length > sizeof(struct unix_told) ||
	    link->come.count == UNIX_MOST_FILES)
		return false;
	if (here < before + frame->length)
		return true;
	memcpy(&passed, link->in.data + link->in.begin + before, sizeof(passed));
	if (passed.file.words > sizeof(passed.file.handle) / sizeof(passed.file.handle[0]))
		return false;
	passed.node = link->owner & OWNERS_NODE;
	memcpy(link->in.data + link->in.begin + before, &passed, sizeof(passed));
	link->opens = true;
	ask_opener(link);
	return true;
}

/* Does what a whole frame without data says; returns false if the link is at an end. */
static bool obey_frame(struct link *link, const struct unix_frame *frame)
{
	switch (frame->kind) {
	case UNIX_WRITE_ENDED:
		(void)shutdown(link->local, SHUT_WR);
		return true;
	case UNIX_READ_ENDED:
		(void)shutdown(link->local, SHUT_RD);
		link->local_ended = true;
		return true;
	case UNIX_OPENED:
		if (frame->length > link->held.count)
			return false;
		close_files(&link->held, frame->length);
		link->first += frame->length;
		return true;
	default:
		return false;
	}
}

/* Goes on with the data of a frame; returns false if nothing can be done now. */
static bool begin_data(struct link *link, const struct unix_frame *frame)
{
	struct buffer *in = &link->in;
	const bool is_whole = length_of(in) >= sizeof(*frame) + frame->length;

	/* What came with files arrives in one piece, as it was sent. */
	if (!is_whole && (link->type != SOCK_STREAM || link->come.count))
		return false;
	in->begin += sizeof(*frame);
	if (link->type == SOCK_STREAM) {
		link->remaining = frame->length;
		return true;
	}
	(void)give(link, frame->length);
	if (link->in_waits)
		in->begin -= sizeof(*frame);
	else
		in->begin += frame->length;
	return true;
}

/* Does what has come; returns false if the link is at an end. */
static bool deliver(struct link *link)
{
	struct buffer *in = &link->in;
	struct unix_frame frame;

	link->in_waits = false;
	while (!link->in_waits && !link->opens && link->state == CARRIED) {
		if (link->remaining) {
			const size_t here = length_of(in), most = here < link->remaining ? here : link->remaining;
			const size_t done = most ? give(link, most) : 0;

			if (!most)
				return true;
			in->begin += done;
			link->remaining -= done;
			continue;
		}
		if (length_of(in) < sizeof(frame))
			return true;
		memcpy(&frame, in->data + in->begin, sizeof(frame));
		if (frame.kind == UNIX_FILE) {
			if (!begin_file(link, &frame))
				return false;
			if (!link->opens)
				return true;
		} else if (frame.kind != UNIX_DATA) {
			in->begin += sizeof(frame);
			if (!obey_frame(link, &frame))
				return false;
		} else {
			if (frame.length > in->room - sizeof(frame) && (link->type != SOCK_STREAM || link->come.count))
				return false;
			if (!begin_data(link, &frame))
				return true;
		}
	}
	return true;
}

/* Tells which files the other side need not keep open any more, once there is room. */
static bool tell_opened(struct link *link)
{
	const struct unix_frame frame = { .kind = UNIX_OPENED, .length = link->opened };
	struct buffer *out = &link->out;

	if (!link->opened || length_of(out))
		return false;
	memcpy(out->data, &frame, sizeof(frame));
	out->end = sizeof(frame);
	link->opened = 0;
	return true;
}

static bool is_over(struct link *link)
{
	if (link->type == SOCK_DGRAM)
		return link->in_broken;
	return link->local_ended && !length_of(&link->out) && has_events(link->local, POLLHUP);
}

/* Nobody is left here: what comes is thrown away, until the other side has ended it. */
static void finish(struct link *link)
{
	flush(link);
	if (!length_of(&link->out))
		(void)shutdown(link->line, SHUT_WR);
	for (;;) {
		const ssize_t got = recv(link->line, link->in.data, link->in.room, MSG_DONTWAIT);

		if (got < 0 && is_later())
			return;
		if (got <= 0)
			break;
	}
	end(link);
}

/* Does what can be done now; it may be gone then. */
static void run(struct link *link)
{
	bool goes_on = true;

	for (int pass = 0; goes_on && pass < MOST_PASSES && link->state == CARRIED; pass++) {
		goes_on = fill_in(link);
		if (!deliver(link) ||
		    (link->state == CARRIED && link->line_ended && !link->in_waits && !link->opens)) {
			end(link);
			return;
		}
		if (link->state != CARRIED)
			break;
		goes_on |= tell_opened(link);
		goes_on |= fill_out(link);
		flush(link);
		if (link->state == CARRIED && is_over(link))
			begin_closing(link);
	}
	if (link->state == CLOSING)
		finish(link);
}

static void carry(struct link *link)
{
	const int flags = fcntl(link->local, F_GETFL);

	(void)fcntl(link->local, F_SETFL, flags | O_NONBLOCK);
	link->state = CARRIED;
	run(link);
}

/* Who does not read for long has not died: the daemon says who has. */
static void take_line(struct link *link, int line)
{
	const int none = 0;

	(void)setsockopt(line, IPPROTO_TCP, TCP_USER_TIMEOUT, &none, sizeof(none));
	(void)setsockopt(line, SOL_SOCKET, SO_KEEPALIVE, &none, sizeof(none));
	link->line = line;
}

/* -- as others -------------------------------------------------------------------------------- */

/*
 * Has a socket that connects, or is connected to, say this PID. A number that nobody has here is given to
 * a process for a moment; if somebody has it, he stands for this very process.
 */
static void set_pid(int fd, pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&pid, .set_tid_size = 1,
	};
	pid_t child;

	if (pid <= 0)
		return;
	child = (pid_t)syscall(__NR_clone3, &args, sizeof(args));
	if (!child)
		_exit(0);
	(void)ioctl(fd, SIOCUNIXPID, (long)pid);
	if (child > 0)
		(void)waitpid(child, NULL, 0);
}

static int take_groups(const struct unix_order *order, const unsigned char *groups)
{
	gid_t room[MOST_GROUPS];

	memcpy(room, groups, order->groups * sizeof(gid_t));
	return setgroups(order->groups, room);
}

/* Most descriptors cannot go along: who sends one is to hear that. */
static int make_socket(const struct unix_order *order)
{
	const int none = 0, fd = socket(AF_UNIX, (int)order->type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	(void)setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &none, sizeof(none));
	(void)ioctl(fd, SIOCUNIXFILES, (long)root_fd);
	set_pid(fd, order->pid);
	return fd;
}

/* -- for clients of other nodes --------------------------------------------------------------- */

static int connect_as(const struct unix_order *order, const unsigned char *data, int fd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct unix_file file;
	int found;

	memcpy(&file, data, sizeof(file));
	found = unix_open_handle(root_fd, &file, file.type, O_PATH | O_CLOEXEC);
	if (found < 0)
		return errno == ESTALE ? ECONNREFUSED : errno;
	if (take_groups(order, data + OF_CONNECT) || setresgid(order->gid, order->gid, order->gid) ||
	    setresuid(order->uid, order->uid, order->uid))
		return errno;
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", found);
	return connect(fd, (const struct sockaddr *)&address, sizeof(address)) ? errno : 0;
}

/* It may wait, for the server or for the root. The copies of all else are given back first. */
static _Noreturn void be_child(const struct unix_order *order, const unsigned char *data, int fd, int says)
{
	int error;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(root_fd, 0) < 0 || dup2(says, 1) < 0 || dup2(fd, 2) < 0)
		_exit(1);
	root_fd = 0;
	(void)close_range(3, UINT_MAX, 0);
	if (order->flags & UNIX_NONBLOCK)
		(void)fcntl(2, F_SETFL, O_RDWR | O_NONBLOCK);
	error = connect_as(order, data, 2);
	(void)!write(1, &error, sizeof(error));
	_exit(0);
}

/* A socket for the client, with the name of his own. */
static int make_clients(const struct unix_order *order, const unsigned char *data)
{
	const int fd = make_socket(order);
	struct unix_bound bound;

	memcpy(&bound, data + sizeof(struct unix_file), sizeof(bound));
	if (fd < 0 || !bound.file || !ioctl(fd, SIOCUNIXNAME, &bound))
		return fd;
	close(fd);
	return -1;
}

static void begin_connect(const struct unix_order *order, const unsigned char *data)
{
	struct link *link = add_link(order);
	int says[2];

	if (!link)
		return;
	link->state = CONNECTING;
	link->local = make_clients(order, data);
	if (!has_room(link) || link->local < 0 || pipe2(says, O_CLOEXEC)) {
		report(UNIX_RESULT, link, ENOMEM, NULL, 0);
		end(link);
		return;
	}
	link->child = fork();
	if (!link->child)
		be_child(order, data, link->local, says[1]);
	close(says[1]);
	link->child_says = says[0];
	if (link->child < 0) {
		close_one(&link->child_says);
		report(UNIX_RESULT, link, EAGAIN, NULL, 0);
		end(link);
	}
}

struct listening {
	struct unix_peer peer;
	gid_t groups[MOST_GROUPS];
};

/* Who listens: PID, user, group and their groups; returns the size. */
static size_t read_peer(int fd, struct listening *listening)
{
	socklen_t size = sizeof(listening->peer), groups = sizeof(listening->groups);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &listening->peer, &size))
		return 0;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, listening->groups, &groups))
		groups = 0;
	return sizeof(listening->peer) + groups;
}

static void end_connect(struct link *link)
{
	static struct listening listening;
	int error = EINTR;

	if (read(link->child_says, &error, sizeof(error)) != sizeof(error))
		error = EINTR;
	(void)waitpid(link->child, NULL, 0);
	close_one(&link->child_says);
	if (error) {
		report(UNIX_RESULT, link, error, NULL, 0);
		end(link);
		return;
	}
	link->state = CONNECTED;
	link->local_ended = link->type == SOCK_DGRAM;
	report(UNIX_RESULT, link, 0, &listening, read_peer(link->local, &listening));
}

/* -- for clients of this node ----------------------------------------------------------------- */

/* One that ticks goes on as it does. */
static void set_ticker(bool on)
{
	static bool is_on;
	const struct itimerspec every = {
		.it_value = { .tv_sec = on ? TICK_S : 0 }, .it_interval = { .tv_sec = on ? TICK_S : 0 },
	};

	if (on != is_on)
		(void)timerfd_settime(ticker, 0, &every, NULL);
	is_on = on;
}

static int bind_as(const struct unix_order *order, const unsigned char *groups, int fd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "ssi.%016llx",
				    (unsigned long long)order->number);
	const socklen_t size = (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 + (socklen_t)length;
	const int told = 1;

	if (order->type == SOCK_DGRAM)
		return setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &told, sizeof(told)) ||
			bind(fd, (const struct sockaddr *)&address, size) ? errno : 0;
	if (take_groups(order, groups) || setegid(order->gid) || seteuid(order->uid) ||
	    bind(fd, (const struct sockaddr *)&address, size) || listen(fd, 1))
		return errno;
	return 0;
}

static void begin_listen(const struct unix_order *order, const unsigned char *data, int line)
{
	struct link *link = find_link(order->role, order->id);
	int error;

	/* The daemon that ordered it first has died. */
	if (link)
		end(link);
	link = add_link(order);
	if (!link) {
		close(line);
		return;
	}
	memcpy(&link->client, data, sizeof(link->client));
	take_line(link, line);
	link->state = AWAITED;
	link->local = make_socket(order);
	error = link->local < 0 || !has_room(link) ? ENOMEM : bind_as(order, data + sizeof(link->client), link->local);
	if (seteuid(0) || setegid(0) || setgroups(0, NULL))
		abort();
	if (!error && link->type == SOCK_DGRAM) {
		link->process = pidfd_open(link->client.pid, 0);
		error = link->process < 0 ? ESRCH : 0;
	}
	report(UNIX_RESULT, link, error, NULL, 0);
	if (error)
		end(link);
	else if (link->type == SOCK_DGRAM)
		carry(link);
	else
		set_ticker(true);
}

static void await_client(struct link *link)
{
	struct ucred peer = { 0 };
	socklen_t size = sizeof(peer);
	const int come = accept4(link->local, NULL, NULL, SOCK_CLOEXEC);

	if (come < 0)
		return;
	if (getsockopt(come, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.pid != link->client.pid ||
	    peer.uid != link->client.uid) {
		close(come);
		return;
	}
	close(link->local);
	link->local = come;
	carry(link);
}

/* Who sends datagrams to somebody is not told of his end. */
static bool sends_datagrams(const struct link *link)
{
	return link->state == CARRIED && link->type == SOCK_DGRAM && link->role == UNIX_CONNECT;
}

/* Who was killed does not come; and what leads to a socket that is closed ends (unix-messages.patch). */
static void look_after_links(void)
{
	bool any = false;
	uint64_t times;

	(void)!read(ticker, &times, sizeof(times));
	for (struct link *link = links, *next; link; link = next) {
		next = link->next;
		if (link->state != AWAITED && !sends_datagrams(link))
			continue;
		any = true;
		if (link->state == AWAITED && ++link->ticks > MOST_TICKS) {
			end(link);
		} else if (link->state != AWAITED && has_events(link->local, POLLMSG)) {
			begin_closing(link);
			run(link);
		}
	}
	if (!any)
		set_ticker(false);
}

/* -- streams ---------------------------------------------------------------------------------- */

/* Returns where the descriptor is that was told to a node by this number, or NULL. */
static int *find_told(uint32_t owner, uint64_t number)
{
	for (const struct link *link = links; link; link = link->next)
		if (link->owner == owner && number >= link->first && number - link->first < link->held.count)
			return link->held.fds + (number - link->first);
	return NULL;
}

static void give_told(const struct unix_order *order)
{
	const int *place = find_told(order->owner, order->id);
	const int fd = place ? *place : -1;
	const struct unix_report head = {
		.kind = UNIX_RESULT, .role = order->role, .id = order->id, .result = fd < 0 ? ECONNRESET : 0,
	};

	keeper_say(&head, sizeof(head), NULL, 0, fd);
}

static void close_told(const struct unix_order *order)
{
	int *place = find_told(order->owner, order->id);

	if (place)
		close_one(place);
}

/* -- what is ordered -------------------------------------------------------------------------- */

static bool is_alive(uint32_t owner, const unsigned char *owners, size_t length)
{
	for (size_t at = 0; at + sizeof(owner) <= length; at += sizeof(owner))
		if (!memcmp(owners + at, &owner, sizeof(owner)))
			return true;
	return false;
}

/* What has come from those that are lost is read to the end. */
static void lose_others(const unsigned char *owners, size_t length)
{
	for (struct link *link = links, *next; link; link = next) {
		next = link->next;
		if (is_alive(link->owner, owners, length))
			continue;
		if (link->state == CARRIED || link->state == CLOSING)
			(void)shutdown(link->line, SHUT_RDWR);
		else
			end(link);
	}
}

static bool is_whole(const struct packet *packet, size_t length)
{
	const struct unix_order *order = &packet->order;
	const size_t before = order->kind == UNIX_CONNECT ? OF_CONNECT : sizeof(struct unix_client);
	struct unix_file file;

	if (order->groups > MOST_GROUPS || length != before + order->groups * sizeof(gid_t))
		return false;
	memcpy(&file, packet->data, sizeof(file));
	return order->kind == UNIX_LISTEN || file.words <= 8;
}

static void obey(const struct packet *packet, size_t length, int fd)
{
	const struct unix_order *order = &packet->order;
	struct link *link = find_link(order->role, order->id);

	switch (order->kind) {
	case UNIX_CONNECT:
		if (is_whole(packet, length))
			begin_connect(order, packet->data);
		break;
	case UNIX_LISTEN:
		if (!is_whole(packet, length) || fd < 0)
			break;
		begin_listen(order, packet->data, fd);
		return;
	case UNIX_CARRY:
		if (!link || link->state != CONNECTED || fd < 0)
			break;
		take_line(link, fd);
		if (link->type == SOCK_DGRAM)
			set_ticker(true);
		carry(link);
		return;
	case UNIX_FINISH:
		if (!link || link->state != CARRIED || link->type != SOCK_DGRAM)
			break;
		link->finishes = true;
		run(link);
		break;
	case UNIX_DROP:
		if (link)
			end(link);
		break;
	case UNIX_ALIVE:
		lose_others(packet->data, length);
		break;
	case UNIX_TAKE:
		give_told(order);
		break;
	case UNIX_TAKEN:
		close_told(order);
		break;
	default:
		break;
	}
	if (fd >= 0)
		close(fd);
}

/* -- the daemon ------------------------------------------------------------------------------- */

/* What the one before has begun nobody goes on with: whoever asked asks again. */
static void take_daemon(void)
{
	const struct unix_report told = { .kind = UNIX_TOLD };

	if (!keeper_take_daemon())
		return;
	for (struct link *link = links, *next; link; link = next) {
		next = link->next;
		if (link->state == CONNECTING || link->state == CONNECTED)
			end(link);
	}
	keeper_say(&told, sizeof(told), NULL, 0, -1);
}

static void hear_daemon(void)
{
	static struct packet packet;
	int fd;
	const ssize_t got = keeper_hear(&packet, sizeof(packet), &fd);

	if (got <= 0)
		keeper_lose_daemon();
	else if ((size_t)got >= sizeof(packet.order))
		obey(&packet, (size_t)got - sizeof(packet.order), fd);
	else if (fd >= 0)
		close(fd);
}

static struct pollfd poll_local(const struct link *link)
{
	struct pollfd poller = { .fd = link->local };
	const bool reads = !link->local_ended && !length_of(&link->out) && link->held.count <= MOST_HELD;

	if (link->state == CONNECTING)
		return (struct pollfd){ .fd = link->child_says, .events = POLLIN };
	if (link->state == AWAITED)
		return (struct pollfd){ .fd = link->local, .events = POLLIN };
	if (link->state != CARRIED)
		return (struct pollfd){ .fd = -1 };
	poller.events = (short)((reads ? POLLIN : 0) | (link->in_waits ? POLLOUT : 0));
	/* That it is closed is of interest once nothing is to be sent before. */
	if (!poller.events && (!link->local_ended || length_of(&link->out) || link->type == SOCK_DGRAM))
		poller.fd = -1;
	return poller;
}

static struct pollfd poll_line(const struct link *link)
{
	struct pollfd poller = { .fd = link->line };

	if (link->state != CARRIED && link->state != CLOSING)
		return (struct pollfd){ .fd = -1 };
	poller.events = (short)((length_of(&link->out) ? POLLOUT : 0) | (link->in_waits || link->opens ? 0 : POLLIN));
	if (!poller.events || link->line_ended)
		poller.fd = -1;
	return poller;
}

static struct pollfd poll_process(const struct link *link)
{
	return (struct pollfd){ .fd = link->state == CARRIED ? link->process : -1, .events = POLLIN };
}

enum { TICKER = KEEPER_OTHERS, OPENER, LINKS, OF_EACH = 3 };

struct polled {
	struct pollfd *pollers;
	size_t room;
};

/* Returns how many links are polled; those beyond what there is memory for wait. */
static size_t list_polled(struct polled *polled)
{
	size_t count = 0;

	polled->pollers[TICKER] = (struct pollfd){ .fd = ticker, .events = POLLIN };
	polled->pollers[OPENER] = (struct pollfd){ .fd = opener, .events = POLLIN };
	for (const struct link *link = links; link; link = link->next, count++) {
		struct pollfd *place;

		if (LINKS + OF_EACH * (count + 1) > polled->room) {
			const size_t room = 2 * polled->room;
			void *more = realloc(polled->pollers, room * sizeof(*polled->pollers));

			if (!more)
				break;
			polled->pollers = more;
			polled->room = room;
		}
		place = polled->pollers + LINKS + OF_EACH * count;
		place[0] = poll_local(link);
		place[1] = poll_line(link);
		place[2] = poll_process(link);
	}
	return count;
}

/* Takes what has been opened; if the opener has died, what was asked for last is given up. */
static void hear_opener(void)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	int error = ECHILD, fd = -1;
	struct iovec part = { .iov_base = &error, .iov_len = sizeof(error) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct link *link = links;
	const ssize_t got = recvmsg(opener, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	/* It is another one, which has been begun meanwhile. */
	if (got < 0 && is_later())
		return;
	if (got != sizeof(error))
		end_opener();
	else if (!error && take_files(&message, &fd) != 1)
		error = EMFILE;
	while (link && link != opener_asker)
		link = link->next;
	opener_is_asked = false;
	opener_asker = NULL;
	if (link && link->state == CARRIED) {
		struct unix_frame frame;

		link->opens = false;
		memcpy(&frame, link->in.data + link->in.begin, sizeof(frame));
		link->in.begin += sizeof(frame) + frame.length;
		link->opened++;
		if (error)
			give_up(link, "opened", error);
		else if (!add_files(&link->come, &fd, 1))
			give_up(link, "opened", ENOMEM);
		run(link);
	} else if (fd >= 0) {
		close(fd);
	}
	ask_for_next();
}

static void attend(struct link *link)
{
	if (link->state == CONNECTING)
		end_connect(link);
	else if (link->state == AWAITED)
		await_client(link);
	else
		run(link);
}

static void step(struct polled *polled)
{
	const size_t count = list_polled(polled);
	const struct pollfd *pollers = polled->pollers, *place = pollers + LINKS;
	struct link *link = links, *next;

	if (keeper_poll(polled->pollers, LINKS + OF_EACH * count, -1) < 0)
		return;
	/* What they do ends none but themselves. */
	for (size_t i = 0; i < count; i++, place += OF_EACH, link = next) {
		next = link->next;
		if (place[0].revents || place[1].revents || place[2].revents)
			attend(link);
	}
	if (pollers[OPENER].revents)
		hear_opener();
	if (pollers[TICKER].revents)
		look_after_links();
	if (pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

int main(int argc, char **argv)
{
	const struct rlimit limit = { .rlim_cur = MOST_DESCRIPTORS, .rlim_max = MOST_DESCRIPTORS };
	struct polled polled = { .room = 256 };

	if (argc != 4) {
		(void)fprintf(stderr, "usage: unixkeeper SOCKET ROOT USERLAND\n");
		return 2;
	}
	root_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ticker = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	if (root_fd < 0 || ticker < 0 || !polled.pollers) {
		(void)fprintf(stderr, "unixkeeper: %s: %s\n", argv[2], strerror(errno));
		return 1;
	}
	if (!keeper_begin("unixkeeper", argv[1]))
		return 1;
	userland = argv[3];
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	for (;;)
		step(&polled);
}
