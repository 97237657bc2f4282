/*
 * switch: the Ethernet switch of one virtual cluster, in user space, without any privilege.
 *
 * Standard input is the control socket (SOCK_SEQPACKET), held by the supervisor. Each request on it is
 * one struct request and is answered by one struct report; a port descriptor travels with its request
 * (SCM_RIGHTS). Closed ports are reported unasked. When the control socket ends, so does the switch.
 *
 * Ports come in two kinds. A node's port is SOCK_SEQPACKET, one Ethernet frame a message (UML's
 * vec0:transport=fd). A node's uplink is SOCK_STREAM, each frame behind its length as four bytes,
 * big-endian (passt, and qemu's -netdev stream).
 *
 * Nothing is learnt: node N is 02:00:00:00:00:N and may send from no other address; the gateway is
 * 02:00:00:00:00:fe, 192.168.50.254, and stands behind each node's own uplink.
 *
 * Nothing blocks: what a receiver does not take waits in a bounded queue of its port, and beyond that
 * is dropped and counted. A sender is never stopped for a slow receiver: one stopped node would cut
 * every other off from all that it talks to, which is how a cluster loses members it still has.
 * (An uplink serves one node alone, so there reading does pause.)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
	CONTROL_FD = STDIN_FILENO,
	MAX_NODE = 127,
	NODES = MAX_NODE + 1,
	GATEWAY = 0xfe,
	HEADER_BYTES = 14,
	FRAME_BYTES = 65535 + HEADER_BYTES + 4,	/* the largest IP packet, header, VLAN tag */
	PREFIX_BYTES = 4,
	BATCH = 32,
	EVENTS = 64,
	QUEUE_BYTES = 1 << 20,	/* of one port: a TCP window and not much more */
	DELAYED_FRAMES = 1 << 16,
	DELAYED_BYTES = 64 << 20,
	PPM = 1000000,
	LONGEST_DELAY_US = 60 * 1000000,
};

enum request_kind { ATTACH = 1, DETACH, STATS, CLEAR, GROUP, LINK, COMMIT };
enum report_kind { DONE = 1, CLOSED, COUNTED };
enum port_kind { NODE, UPLINK, PORT_KINDS };
enum { TAG_CONTROL = 0xffff, TAG_TIMER = 0xfffe };

/* LINK with node and peer 0 means every pair. CLEAR, GROUP and LINK edit a draft, COMMIT enacts it. */
struct request {
	uint32_t kind, port, node, peer, drop_ppm, delay_us, jitter_us, zero;
};

struct counters {
	uint64_t frames_in, bytes_in, frames_out, bytes_out;
	uint64_t malformed, spoofed, unknown, faulted, full, held;
};

struct report {
	uint32_t kind, port, node, error;
	struct counters counters;
};

struct frame {
	struct frame *next;
	size_t sent, length;
	unsigned char bytes[];
};

struct port {
	int fd;			/* -1: nothing is plugged in */
	enum port_kind kind;
	unsigned node;
	bool wants_write, paused, unreported;
	struct frame *first, *last;
	size_t queued;
	unsigned char *inbox;	/* of an uplink: the beginning of a frame whose end is still to come */
	size_t inbox_used;
	struct counters counters;
};

struct link {
	uint32_t drop_ppm, delay_us, jitter_us;
};

struct faults {
	uint32_t group[NODES];
	struct link link[NODES][NODES];
};

struct delayed {
	uint64_t due, order;
	struct frame *frame;
	uint8_t from, to;
};

static struct port ports[PORT_KINDS][NODES];
static struct faults draft, active;
static struct delayed delayed[DELAYED_FRAMES];	/* a binary heap, the soonest first */
static size_t delayed_count, delayed_bytes;
static uint64_t delayed_order, last_due[NODES][NODES], timer_due;
static unsigned char batch[BATCH][FRAME_BYTES];
static int epoll_fd, timer_fd;
static uint64_t random_state;
static struct report answer;
static bool answer_waits;
static uint32_t control_events = EPOLLIN;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "switch: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
		die("clock_gettime");
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* splitmix64: no secret depends on it. */
static uint32_t random_below(uint32_t bound)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15U;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
	return (uint32_t)((z ^ (z >> 31)) % bound);
}

static uint32_t tag_of(const struct port *port)
{
	return (uint32_t)port->kind << 8 | port->node;
}

/* ---- ports ---- */

static void watch(struct port *port)
{
	struct epoll_event event = {
		.events = (port->paused ? 0U : EPOLLIN | EPOLLRDHUP) | (port->wants_write ? EPOLLOUT : 0U),
		.data.u32 = tag_of(port),
	};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, port->fd, &event) < 0)
		die("epoll_ctl");
}

static void set_wants_write(struct port *port, bool wanted)
{
	if (port->wants_write == wanted)
		return;
	port->wants_write = wanted;
	watch(port);
}

static void pause_uplink(unsigned node, bool paused)
{
	struct port *uplink = &ports[UPLINK][node];

	if (uplink->fd < 0 || uplink->paused == paused)
		return;
	uplink->paused = paused;
	watch(uplink);
}

static void unplug(struct port *port)
{
	if (port->fd < 0)
		return;
	if (close(port->fd) < 0 && errno != EINTR)
		die("close");
	port->fd = -1;
	while (port->first) {
		struct frame *frame = port->first;

		port->first = frame->next;
		free(frame);
	}
	port->last = NULL;
	port->queued = 0;
	free(port->inbox);
	port->inbox = NULL;
	port->inbox_used = 0;
	port->wants_write = port->paused = false;
	if (port->kind == NODE)
		pause_uplink(port->node, false);
}

static void lose(struct port *port)
{
	unplug(port);
	port->unreported = true;
}

static int plug(struct port *port, int fd)
{
	const int wanted = port->kind == NODE ? SOCK_SEQPACKET : SOCK_STREAM;
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP, .data.u32 = tag_of(port) };
	int type = 0;
	socklen_t size = sizeof type;

	if (port->fd >= 0)
		return EEXIST;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return errno;
	if (type != wanted)
		return EPROTOTYPE;
	if (port->kind == UPLINK) {
		port->inbox = malloc(PREFIX_BYTES + FRAME_BYTES);
		if (!port->inbox)
			return ENOMEM;
	}
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
		free(port->inbox);
		port->inbox = NULL;
		return errno;
	}
	port->fd = fd;
	port->unreported = false;
	port->counters = (struct counters){ 0 };
	return 0;
}

/* ---- sending ---- */

static struct frame *new_frame(const void *bytes, size_t length, size_t prefix)
{
	struct frame *frame = malloc(sizeof *frame + prefix + length);

	if (!frame)
		return NULL;
	*frame = (struct frame){ .length = prefix + length };
	if (prefix) {
		uint32_t size = htonl((uint32_t)length);

		memcpy(frame->bytes, &size, sizeof size);
	}
	memcpy(frame->bytes + prefix, bytes, length);
	return frame;
}

static void count_out(struct port *port, size_t bytes)
{
	port->counters.frames_out++;
	port->counters.bytes_out += bytes;
}

/* Keep what the port's socket does not take now; `sent` bytes of it (a stream) have left already. */
static void hold(struct port *port, const struct iovec *part, size_t sent)
{
	const size_t prefix = port->kind == UPLINK ? PREFIX_BYTES : 0;
	struct frame *frame = NULL;

	/* The rest of a frame that was begun must follow it, or the stream is out of step for good. */
	if (sent || port->queued + part->iov_len <= QUEUE_BYTES)
		frame = new_frame(part->iov_base, part->iov_len, prefix);
	if (!frame) {
		port->counters.full++;
		if (sent)
			lose(port);
		return;
	}
	frame->sent = sent;
	if (port->last)
		port->last->next = frame;
	else
		port->first = frame;
	port->last = frame;
	port->queued += frame->length;
	port->counters.held++;
	set_wants_write(port, true);
	if (port->kind == NODE)
		pause_uplink(port->node, true);
}

/* Whether a failed send means: later. Anything else costs the one frame; a hangup shows in reading. */
static bool is_full(int error)
{
	return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

static void send_messages(struct port *port, struct iovec *parts, unsigned count)
{
	struct mmsghdr messages[BATCH] = { 0 };
	unsigned done = 0;

	for (unsigned i = 0; i < count; i++) {
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (done < count && !port->first) {
		int sent = sendmmsg(port->fd, messages + done, count - done, MSG_DONTWAIT | MSG_NOSIGNAL);

		for (int i = 0; i < sent; i++)
			count_out(port, parts[done + (unsigned)i].iov_len);
		if (sent > 0)
			done += (unsigned)sent;
		else if (is_full(errno))
			hold(port, &parts[done++], 0);
		else {
			port->counters.full++;
			done++;
		}
	}
	for (; done < count; done++)
		hold(port, &parts[done], 0);
}

static void send_stream(struct port *port, struct iovec *part)
{
	uint32_t size = htonl((uint32_t)part->iov_len);
	struct iovec whole[2] = { { &size, sizeof size }, *part };
	struct msghdr message = { .msg_iov = whole, .msg_iovlen = 2 };
	ssize_t sent = 0;

	if (!port->first) {
		sent = sendmsg(port->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && !is_full(errno)) {
			port->counters.full++;
			return;
		}
	}
	if (sent == (ssize_t)(PREFIX_BYTES + part->iov_len))
		count_out(port, part->iov_len);
	else
		hold(port, part, sent < 0 ? 0 : (size_t)sent);
}

static void send_frames(struct port *port, struct iovec *parts, unsigned count)
{
	if (port->kind == NODE) {
		send_messages(port, parts, count);
		return;
	}
	for (unsigned i = 0; i < count && port->fd >= 0; i++)
		send_stream(port, &parts[i]);
}

/* The socket has room again: send what was held. */
static void drain(struct port *port)
{
	while (port->first) {
		struct frame *frame = port->first;
		ssize_t sent = send(port->fd, frame->bytes + frame->sent, frame->length - frame->sent,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && is_full(errno))
			return;
		if (sent < 0)
			port->counters.full++;
		else if (frame->sent + (size_t)sent < frame->length) {
			frame->sent += (size_t)sent;
			continue;
		} else
			count_out(port, frame->length - (port->kind == UPLINK ? PREFIX_BYTES : 0));
		port->queued -= frame->length;
		port->first = frame->next;
		if (!port->first)
			port->last = NULL;
		free(frame);
	}
	set_wants_write(port, false);
	if (port->kind == NODE)
		pause_uplink(port->node, false);
}

/* ---- delayed frames ---- */

static bool is_sooner(const struct delayed *a, const struct delayed *b)
{
	return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void swap_delayed(size_t a, size_t b)
{
	struct delayed other = delayed[a];

	delayed[a] = delayed[b];
	delayed[b] = other;
}

static void push_delayed(struct delayed item)
{
	size_t at = delayed_count++;

	delayed[at] = item;
	while (at && is_sooner(&delayed[at], &delayed[(at - 1) / 2])) {
		swap_delayed(at, (at - 1) / 2);
		at = (at - 1) / 2;
	}
}

static struct delayed pop_delayed(void)
{
	struct delayed top = delayed[0];
	size_t at = 0;

	delayed[0] = delayed[--delayed_count];
	for (;;) {
		size_t least = at;

		for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < delayed_count; child++)
			if (is_sooner(&delayed[child], &delayed[least]))
				least = child;
		if (least == at)
			return top;
		swap_delayed(at, least);
		at = least;
	}
}

static void set_timer(void)
{
	uint64_t due = delayed_count ? delayed[0].due : 0;
	struct itimerspec when = {
		.it_value = { (time_t)(due / 1000000000U), (long)(due % 1000000000U) },
	};

	if (due == timer_due)
		return;
	if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0)
		die("timerfd_settime");
	timer_due = due;
}

static void delay(struct port *from, struct port *to, const struct link *link, const struct iovec *part)
{
	uint64_t wait = link->delay_us, *last = &last_due[from->node][to->node];
	struct frame *frame = NULL;

	if (link->jitter_us)
		wait += random_below(2 * link->jitter_us + 1);
	wait -= wait < link->jitter_us ? wait : link->jitter_us;
	if (delayed_count < DELAYED_FRAMES && delayed_bytes + part->iov_len <= DELAYED_BYTES)
		frame = new_frame(part->iov_base, part->iov_len, 0);
	if (!frame) {
		to->counters.full++;
		return;
	}
	/* Jitter stretches and squeezes, but frames of one pair stay in order, as on a wire. */
	uint64_t due = now_ns() + wait * 1000;

	*last = due > *last ? due : *last;
	delayed_bytes += frame->length;
	push_delayed((struct delayed){
		*last, delayed_order++, frame, (uint8_t)from->node, (uint8_t)to->node });
}

static void deliver_due(void)
{
	uint64_t expirations, now = now_ns();

	if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
		die("read of the timer");
	timer_due = 0;
	while (delayed_count && delayed[0].due <= now) {
		struct delayed item = pop_delayed();
		struct port *to = &ports[NODE][item.to];
		struct iovec part = { item.frame->bytes, item.frame->length };

		/* A partition cuts what is on the wire, too. */
		if (active.group[item.from] != active.group[item.to])
			to->counters.faulted++;
		else if (to->fd >= 0)
			send_frames(to, &part, 1);
		delayed_bytes -= item.frame->length;
		free(item.frame);
	}
}

/* ---- where a frame goes ---- */

/* The node (or GATEWAY) whose address this is, or 0. */
static unsigned owner_of(const unsigned char *address)
{
	static const unsigned char stem[5] = { 2 };

	return memcmp(address, stem, sizeof stem) ? 0 : address[5];
}

static bool asks_for_gateway(const unsigned char *frame, size_t length)
{
	static const unsigned char request[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };
	static const unsigned char gateway[] = { 192, 168, 50, 254 };

	return length >= 42 && !memcmp(frame + 12, request, sizeof request) &&
	       !memcmp(frame + 38, gateway, sizeof gateway);
}

/* Frames that follow each other to one port, not sent yet: one system call for all of them. */
struct run {
	struct port *to;
	unsigned count;
	struct iovec parts[BATCH];
};

static void flush(struct run *run)
{
	if (run->count && run->to->fd >= 0)
		send_frames(run->to, run->parts, run->count);
	run->count = 0;
}

static void append(struct run *run, struct port *to, const struct iovec *part)
{
	if (run->to != to || run->count == BATCH)
		flush(run);
	run->to = to;
	run->parts[run->count++] = *part;
}

static void pass(struct port *from, struct port *to, const struct iovec *part, struct run *run)
{
	const struct link *link = &active.link[from->node][to->node];

	if (active.group[from->node] != active.group[to->node] ||
	    (link->drop_ppm && random_below(PPM) < link->drop_ppm)) {
		from->counters.faulted++;
		return;
	}
	/* Behind frames still delayed when the delay was taken away: after them. */
	if (link->delay_us || link->jitter_us ||
	    (delayed_count && last_due[from->node][to->node] > now_ns()))
		delay(from, to, link, part);
	else
		append(run, to, part);
}

static void forward(struct port *from, const struct iovec *part, struct run *run)
{
	const unsigned char *frame = part->iov_base;
	struct port *uplink = &ports[UPLINK][from->node];
	unsigned owner = owner_of(frame);

	if (part->iov_len < HEADER_BYTES || part->iov_len > FRAME_BYTES)
		from->counters.malformed++;
	else if (owner_of(frame + 6) != from->node)
		from->counters.spoofed++;
	else if (owner == GATEWAY || asks_for_gateway(frame, part->iov_len)) {
		if (uplink->fd >= 0)
			append(run, uplink, part);
		else
			from->counters.unknown++;
	} else if (frame[0] & 1) {
		for (unsigned node = 1; node <= MAX_NODE; node++)
			if (node != from->node && ports[NODE][node].fd >= 0)
				pass(from, &ports[NODE][node], part, run);
	} else if (owner && owner <= MAX_NODE && owner != from->node && ports[NODE][owner].fd >= 0)
		pass(from, &ports[NODE][owner], part, run);
	else
		from->counters.unknown++;
}

/* ---- receiving ---- */

static void count_in(struct port *port, size_t bytes)
{
	port->counters.frames_in++;
	port->counters.bytes_in += bytes;
}

static int receive_batch(int fd, struct mmsghdr *messages, struct iovec *parts)
{
	for (unsigned i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ batch[i], FRAME_BYTES };
		messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &parts[i], .msg_iovlen = 1 } };
	}
	return recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
}

static void read_node(struct port *port, uint32_t events)
{
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	struct run run = { 0 };
	bool ended = false;
	int count = receive_batch(port->fd, messages, parts);

	/* ECONNRESET: it died with frames unread. What it had sent before is still there to be read. */
	if (count < 0 && !is_full(errno) && errno != ECONNRESET)
		ended = true;
	for (int i = 0; i < count && !ended; i++) {
		parts[i].iov_len = messages[i].msg_len;
		/* An empty message and the end look alike, but for the hangup. */
		ended = !messages[i].msg_len && events & (EPOLLHUP | EPOLLRDHUP);
		if (ended)
			break;
		count_in(port, parts[i].iov_len);
		if (messages[i].msg_hdr.msg_flags & MSG_TRUNC || !messages[i].msg_len)
			port->counters.malformed++;
		else
			forward(port, &parts[i], &run);
	}
	flush(&run);
	if (ended)
		lose(port);
}

static void deliver_from_uplink(struct port *uplink, struct iovec part, struct run *run)
{
	const unsigned char *frame = part.iov_base;
	struct port *node = &ports[NODE][uplink->node];

	count_in(uplink, part.iov_len);
	if (owner_of(frame + 6) != GATEWAY)
		uplink->counters.spoofed++;
	else if (node->fd < 0)
		uplink->counters.unknown++;
	else
		append(run, node, &part);
}

/* Hand on every whole frame in bytes[0..used); return how much that was, or -1 for garbage. */
static ssize_t take_frames(struct port *uplink, unsigned char *bytes, size_t used)
{
	struct run run = { 0 };
	size_t at = 0;
	bool garbage = false;

	while (used - at >= PREFIX_BYTES) {
		uint32_t length;

		memcpy(&length, bytes + at, sizeof length);
		length = ntohl(length);
		garbage = length < HEADER_BYTES || length > FRAME_BYTES;
		if (garbage || used - at - PREFIX_BYTES < length)
			break;
		deliver_from_uplink(uplink, (struct iovec){ bytes + at + PREFIX_BYTES, length }, &run);
		at += PREFIX_BYTES + length;
	}
	flush(&run);
	return garbage ? -1 : (ssize_t)at;
}

static void read_uplink(struct port *port)
{
	/* All of `batch` as one buffer: it is idle here, and passt sends many small frames. */
	unsigned char *bytes = &batch[0][0];
	ssize_t got, taken;

	memcpy(bytes, port->inbox, port->inbox_used);
	got = recv(port->fd, bytes + port->inbox_used, sizeof batch - port->inbox_used, MSG_DONTWAIT);
	if (got < 0 && is_full(errno))
		return;
	if (got <= 0) {
		lose(port);
		return;
	}
	got += (ssize_t)port->inbox_used;
	taken = take_frames(port, bytes, (size_t)got);
	if (taken < 0) {
		port->counters.malformed++;
		lose(port);
		return;
	}
	port->inbox_used = (size_t)(got - taken);
	memcpy(port->inbox, bytes + taken, port->inbox_used);
}

/* ---- control ---- */

static bool names_port(const struct request *request)
{
	return request->port < PORT_KINDS && request->node >= 1 && request->node <= MAX_NODE;
}

static bool names_link(const struct request *request)
{
	bool all = !request->node && !request->peer;
	bool pair = request->node >= 1 && request->node <= MAX_NODE && request->peer >= 1 &&
		    request->peer <= MAX_NODE;

	return (all || pair) && request->drop_ppm <= PPM && request->delay_us <= LONGEST_DELAY_US &&
	       request->jitter_us <= LONGEST_DELAY_US;
}

static void draft_link(const struct request *request)
{
	struct link link = { request->drop_ppm, request->delay_us, request->jitter_us };

	if (request->node) {
		draft.link[request->node][request->peer] = link;
		return;
	}
	for (unsigned from = 0; from < NODES; from++)
		for (unsigned to = 0; to < NODES; to++)
			draft.link[from][to] = link;
}

/* Do what is asked and return 0 or an errno; *fd is -1 or the caller's to close, -1 when taken. */
static int obey(const struct request *request, int *fd)
{
	struct port *port = names_port(request) ? &ports[request->port][request->node] : NULL;
	int error = 0;

	switch ((enum request_kind)request->kind) {
	case ATTACH:
		error = !port || *fd < 0 ? EINVAL : plug(port, *fd);
		if (!error)
			*fd = -1;
		return error;
	case DETACH:
		if (!port)
			return EINVAL;
		unplug(port);
		port->unreported = false;
		return 0;
	case STATS:
		return port ? 0 : EINVAL;
	case CLEAR:
		memset(&draft, 0, sizeof draft);
		return 0;
	case GROUP:
		if (!port || request->peer > MAX_NODE)
			return EINVAL;
		draft.group[request->node] = request->peer;
		return 0;
	case LINK:
		if (!names_link(request))
			return EINVAL;
		draft_link(request);
		return 0;
	case COMMIT:
		active = draft;
		return 0;
	}
	return EINVAL;
}

static void prepare_answer(const struct request *request, int error)
{
	answer = (struct report){
		.kind = request->kind == STATS && !error ? COUNTED : DONE,
		.port = request->port,
		.node = request->node,
		.error = (uint32_t)error,
	};
	if (answer.kind == COUNTED)
		answer.counters = ports[request->port][request->node].counters;
	answer_waits = true;
}

/* Take the first descriptor that came with a message; close any others. */
static int take_descriptor(struct msghdr *message)
{
	int fd = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int next;

			memcpy(&next, CMSG_DATA(c) + i * sizeof next, sizeof next);
			if (fd < 0)
				fd = next;
			else
				close(next);
		}
	}
	return fd;
}

/* Returns false at the end of the control socket. */
static bool read_control(void)
{
	struct request request = { 0 };
	struct iovec part = { &request, sizeof request };
	_Alignas(struct cmsghdr) char room[CMSG_SPACE(4 * sizeof(int))];
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room,
	};
	ssize_t got = recvmsg(CONTROL_FD, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd, error = EINVAL;

	if (got < 0 && is_full(errno))
		return true;
	if (got <= 0)
		return false;
	fd = take_descriptor(&message);
	if (got == sizeof request && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		error = obey(&request, &fd);
	if (fd >= 0)
		close(fd);
	prepare_answer(&request, error);
	return true;
}

/* Returns false when it has to wait for room. */
static bool tell(const struct report *report)
{
	if (send(CONTROL_FD, report, sizeof *report, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return true;
	if (errno == EPIPE || errno == ECONNRESET)
		exit(0);
	if (!is_full(errno))
		die("send to the supervisor");
	return false;
}

static bool tell_all(void)
{
	if (answer_waits) {
		if (!tell(&answer))
			return false;
		answer_waits = false;
	}
	for (unsigned i = 0; i < PORT_KINDS * NODES; i++) {
		struct port *port = &ports[i / NODES][i % NODES];
		struct report report = { .kind = CLOSED, .port = port->kind, .node = port->node };

		if (!port->unreported)
			continue;
		report.counters = port->counters;
		if (!tell(&report))
			return false;
		port->unreported = false;
	}
	return true;
}

/* Requests are read only when the last answer has left, so a supervisor that never reads costs nothing. */
static void report_and_watch_control(void)
{
	uint32_t room = tell_all() ? 0 : EPOLLOUT;
	struct epoll_event event = {
		.events = (answer_waits ? 0 : EPOLLIN) | room,
		.data.u32 = TAG_CONTROL,
	};

	if (event.events == control_events)
		return;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, CONTROL_FD, &event) < 0)
		die("epoll_ctl");
	control_events = event.events;
}

/* ---- life ---- */

static void serve_port(uint32_t tag, uint32_t events)
{
	struct port *port = &ports[tag >> 8][tag & 0xff];

	if (port->fd >= 0 && events & EPOLLOUT)
		drain(port);
	/* EPOLLHUP comes unasked for: a paused uplink that ended would spin here if it were not read. */
	if (port->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
		return;
	if (port->kind == NODE)
		read_node(port, events);
	else
		read_uplink(port);
}

/* Returns false when the supervisor is gone. */
static bool serve_once(void)
{
	struct epoll_event events[EVENTS];
	int count = epoll_wait(epoll_fd, events, EVENTS, -1);
	bool goes_on = true;

	if (count < 0 && errno != EINTR)
		die("epoll_wait");
	for (int i = 0; i < count && goes_on; i++) {
		if (events[i].data.u32 == TAG_TIMER)
			deliver_due();
		else if (events[i].data.u32 != TAG_CONTROL)
			serve_port(events[i].data.u32, events[i].events);
		else if (!answer_waits)
			goes_on = read_control();
		else
			goes_on = !(events[i].events & (EPOLLHUP | EPOLLERR));
	}
	set_timer();
	report_and_watch_control();
	return goes_on;
}

static void set_up(void)
{
	struct epoll_event control = { .events = control_events, .data.u32 = TAG_CONTROL };
	struct epoll_event timer = { .events = EPOLLIN, .data.u32 = TAG_TIMER };

	/* Also when the supervisor's end of the control socket leaked into a process that outlives it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		die("prctl");
	if (getrandom(&random_state, sizeof random_state, 0) != sizeof random_state)
		die("getrandom");
	for (unsigned i = 0; i < PORT_KINDS * NODES; i++)
		ports[i / NODES][i % NODES] = (struct port){
			.fd = -1, .kind = i < NODES ? NODE : UPLINK, .node = i % NODES };
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (epoll_fd < 0 || timer_fd < 0)
		die("epoll_create1 or timerfd_create");
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, CONTROL_FD, &control) < 0)
		die("standard input, the control socket");
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &timer) < 0)
		die("epoll_ctl");
}

int main(void)
{
	set_up();
	while (serve_once())
		;
	return 0;
}
