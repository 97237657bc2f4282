/*
 * relay SOCKET: sockets of this node's processes whose other ends are on other nodes.
 *
 * A process that has moved has one end of a real pair; the other end is here, and its bytes are carried to
 * and from the far end, which stayed where the pair was made. What is done there is ordered by way of the
 * daemon. That may be killed: this process keeps the bytes, and asks the next one for what has no answer,
 * by the same number. A process that has come home may have bytes that were read for it on another node:
 * then the far end is the socket itself. Runs as root: a pair is made as the user who made the first one.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "buffer.h"
#include "ghost.h"
#include "keeper.h"
#include "messages.h"
#include "relay.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

enum {
	PIECE = 32 * 1024,	/* what one order reads or writes at most */
	MOST_OUT = 64 * 1024,	/* bytes on their way out; who writes more waits */
	MOST_SAVED = 4 * 1024 * 1024,
	MOST_COME = 2,		/* descriptors with an order */
	NUMBER_SHIFT = 26,
	SERIAL_MASK = (1 << 24) - 1,
};

/* In the numbers of our orders to ghosts: the kernel's own requests have none so high. */
#define OURS ((uint64_t)1 << 50)

/* What was ordered at the far end and has no answer yet; number 0: nothing. */
struct wish {
	uint64_t number;
	uint32_t order;
	int64_t value;
	size_t size;
};

struct relay {
	struct relay *next;
	uint32_t number, state, flags, uid, gid;
	int type, send_room;	/* of its socket */
	uint32_t serial;
	uint64_t handle, inode;
	int near, far;		/* far: the far end, or what keeps it open */
	struct buffer in, out;	/* bytes, or messages (messages.h) */
	size_t given;		/* bytes of a message that the far end does not have as a whole yet */
	bool in_shut, out_told, read_shut;
	struct wish reading, writing, telling, watching;
	uint64_t asked;		/* id of FREEZE */
	int file;
	char move[32];
};

struct packet {
	struct relay_order order;
	unsigned char data[PIECE];
};

static struct relay *relays;
static uint32_t last_relay;

/* -- bytes ------------------------------------------------------------------------------------ */

static bool is_stream(const struct relay *relay)
{
	return relay->type == SOCK_STREAM;
}

static bool is_datagram(const struct relay *relay)
{
	return relay->type == SOCK_DGRAM;
}

/* Receives a piece, or a message; as recv(), but 0 is the end. */
static ssize_t receive(const struct relay *relay, struct buffer *buffer, int fd)
{
	unsigned char *place;
	ssize_t got;

	if (!is_stream(relay))
		return receive_message(buffer, fd);
	place = make_room(buffer, PIECE);
	if (!place) {
		errno = EAGAIN;
		return -1;
	}
	got = recv(fd, place, PIECE, MSG_DONTWAIT);
	if (got > 0)
		buffer->end += (size_t)got;
	else if (!length_of(buffer))
		clear(buffer);
	return got;
}

/* Sends what it takes at once, or a message; as send(), but it is taken out. */
static ssize_t pour(const struct relay *relay, struct buffer *buffer, int fd)
{
	ssize_t sent;

	if (!is_stream(relay))
		return send_message(buffer, fd);
	sent = send(fd, begin_of(buffer), length_of(buffer), MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent > 0)
		consume(buffer, (size_t)sent);
	return sent;
}

/* Whether there is something that can be sent: of a message the rest may be on its way. */
static bool has_some(const struct relay *relay, const struct buffer *buffer)
{
	return is_stream(relay) ? length_of(buffer) : find_message(buffer);
}

/* Whether the last message is not whole. */
static bool is_cut(const struct relay *relay, const struct buffer *buffer)
{
	struct buffer rest = *buffer;
	size_t size;

	if (is_stream(relay))
		return false;
	while ((size = find_message(&rest)))
		rest.begin += size;
	return length_of(&rest);
}

static bool is_later(void)
{
	return errno == EAGAIN || errno == EINTR;
}

/* -- what the daemon hears -------------------------------------------------------------------- */

static void say(const struct relay_report *head, const void *data, size_t length, int fd)
{
	keeper_say(head, sizeof(*head), data, length, fd);
}

static void report(uint32_t kind, uint32_t relay, uint64_t id, int64_t result)
{
	const struct relay_report head = { .kind = kind, .relay = relay, .id = id, .result = result };

	say(&head, NULL, 0, -1);
}

static void say_wish(const struct relay *relay, const struct wish *wish)
{
	const struct relay_report head = {
		.kind = RELAY_WANT, .relay = relay->number, .id = wish->number, .result = wish->value,
		.handle = relay->handle, .value = wish->order,
		.flags = is_stream(relay) ? 0 : GHOST_MESSAGES,
	};
	const size_t length = length_of(&relay->out) - relay->given;

	if (wish->number)
		say(&head, begin_of(&relay->out) + relay->given, wish->size < length ? wish->size : length,
		    -1);
}

static void want(struct relay *relay, struct wish *wish, uint32_t order, int64_t value, size_t size)
{
	const uint64_t serial = ++relay->serial & ((1 << NUMBER_SHIFT) - 1);

	*wish = (struct wish){
		.number = OURS | (uint64_t)relay->number << NUMBER_SHIFT | serial,
		.order = order, .value = value, .size = size,
	};
	say_wish(relay, wish);
}

/* -- one relay -------------------------------------------------------------------------------- */

static bool is_ours(const struct relay *relay)
{
	return !relay->handle;
}

static bool has(const struct relay *relay, uint32_t flags)
{
	return relay->flags & flags;
}

/* Whether the process itself had shut both halves: then poll says that always, and nothing else matters. */
static bool is_mute(const struct relay *relay)
{
	return has(relay, RELAY_SHUT_READS) && has(relay, RELAY_SHUT_WRITES);
}

static bool is_hung_up(int fd)
{
	struct pollfd poller = { .fd = fd };

	return poll(&poller, 1, 0) > 0 && poller.revents & POLLHUP;
}

static void end(struct relay *relay)
{
	struct relay **place = &relays;

	while (*place != relay)
		place = &(*place)->next;
	*place = relay->next;
	report(RELAY_GONE, relay->number, 0, 0);
	close(relay->near);
	close(relay->far);
	if (relay->file >= 0)
		close(relay->file);
	clear(&relay->in);
	clear(&relay->out);
	free(relay);
}

static void clear_out(struct relay *relay)
{
	clear(&relay->out);
	relay->given = 0;
}

static void break_in(struct relay *relay)
{
	relay->flags |= RELAY_IN_BROKEN;
	clear(&relay->in);
}

/* Nobody takes what the socket's process writes. */
static void break_out(struct relay *relay)
{
	relay->flags |= RELAY_OUT_BROKEN;
	clear_out(relay);
}

static void lose_far(struct relay *relay)
{
	relay->flags |= RELAY_FAR_ENDED | (is_datagram(relay) ? RELAY_FAR_GONE : 0);
	break_out(relay);
}

/* Takes an error of writing to the far end. */
static void fail_out(struct relay *relay, int error)
{
	if (!is_datagram(relay) || error == EPIPE) {
		break_out(relay);
	} else if (error == ECONNREFUSED || error == ENOTCONN) {
		/* What it has left is yet to be read. */
		relay->flags |= RELAY_FAR_GONE;
		break_out(relay);
	} else {
		lose_far(relay);
	}
}

/* What poll is asked for, to know when the far end takes nothing more. */
static short far_events(const struct relay *relay)
{
	if (is_stream(relay))
		return 0;
	return POLLMSG | (has(relay, RELAY_OUT_BROKEN) ? 0 : MESSAGES_REFUSED);
}

static bool watches_far(const struct relay *relay)
{
	if (is_datagram(relay))
		return !has(relay, RELAY_FAR_GONE) && !is_mute(relay);
	return !has(relay, RELAY_OUT_SHUT | RELAY_OUT_BROKEN) &&
		(!is_stream(relay) || has(relay, RELAY_FAR_ENDED));
}

/* Takes what poll says of the far end. */
static void see_far(struct relay *relay, short seen)
{
	if (is_datagram(relay) && !(seen & MESSAGES_REFUSED))
		relay->flags |= RELAY_FAR_GONE;
	break_out(relay);
}

/* Whether it was closed, which is seen before all that it has left is read. */
static bool is_gone(const struct relay *relay)
{
	return is_datagram(relay) && look_at_messages(relay->near) & MESSAGES_OVER;
}

static void fill_in(struct relay *relay)
{
	if (has_some(relay, &relay->in) || has(relay, RELAY_FAR_ENDED) ||
	    (has(relay, RELAY_IN_BROKEN) && !is_gone(relay)))
		return;
	if (is_ours(relay)) {
		const ssize_t got = receive(relay, &relay->in, relay->far);

		if (got == 0)
			relay->flags |= RELAY_FAR_ENDED;
		else if (got < 0 && !is_later())
			lose_far(relay);
		if (has(relay, RELAY_IN_BROKEN))
			clear(&relay->in);
	} else if (!relay->reading.number) {
		want(relay, &relay->reading, GHOST_READ, PIECE, 0);
	}
}

/* Whether nobody reads from the socket any more. */
static bool is_deaf(const struct relay *relay)
{
	if (relay->in_shut)
		return false;
	if (!is_stream(relay))
		return look_at_messages(relay->near) & (MESSAGES_OVER | MESSAGES_REFUSED);
	/* It has been closed, or nobody reads from it while it has nothing more to say. */
	return is_hung_up(relay->near);
}

/* Whether nothing more comes to the socket, and that can be said: messages that it has not received yet
 * may have to be taken back (freeze), and it takes no others after the end. */
static bool is_at_end(const struct relay *relay)
{
	return has(relay, RELAY_FAR_ENDED) && !length_of(&relay->in) &&
		(relay->type != SOCK_SEQPACKET || look_at_messages(relay->near) & MESSAGES_TAKEN);
}

static void pour_in(struct relay *relay)
{
	while (has_some(relay, &relay->in)) {
		const ssize_t sent = pour(relay, &relay->in, relay->near);

		if (sent < 0 && is_later())
			break;
		if (sent < 0)
			break_in(relay);
	}
	if (!has(relay, RELAY_IN_BROKEN) && is_deaf(relay))
		break_in(relay);
	if (!relay->in_shut && !is_datagram(relay) && is_at_end(relay)) {
		(void)shutdown(relay->near, SHUT_WR);
		relay->in_shut = true;
	}
}

static void fill_out(struct relay *relay, size_t most)
{
	const uint32_t over = RELAY_NEAR_ENDED | (is_datagram(relay) ? 0 : RELAY_OUT_BROKEN);
	ssize_t got = 1;

	while (got > 0 && length_of(&relay->out) < most && !has(relay, over)) {
		got = receive(relay, &relay->out, relay->near);
		if (got < 0 && !is_later()) {
			(void)shutdown(relay->near, SHUT_RD);
			relay->flags |= RELAY_NEAR_ENDED;
		} else if (got == 0 && (!is_datagram(relay) || is_gone(relay))) {
			relay->flags |= RELAY_NEAR_ENDED;
		}
		if (has(relay, RELAY_OUT_BROKEN))
			clear_out(relay);
	}
}

static void pour_out(struct relay *relay)
{
	while (length_of(&relay->out) && !relay->writing.number) {
		const size_t length = length_of(&relay->out) - relay->given;
		ssize_t sent;

		if (!is_ours(relay)) {
			/* A message is begun anew, whatever there is of it. */
			want(relay, &relay->writing, GHOST_WRITE, !is_stream(relay) && !relay->given,
			     length < PIECE ? length : PIECE);
			return;
		}
		sent = pour(relay, &relay->out, relay->far);
		if (sent < 0 && is_later())
			return;
		if (sent < 0)
			fail_out(relay, errno);
	}
}

/* Takes it that the far end has so many bytes more. */
static void take_given(struct relay *relay, size_t given)
{
	size_t size;

	if (is_stream(relay)) {
		consume(&relay->out, given);
		return;
	}
	relay->given += given;
	while ((size = find_message(&relay->out)) && size <= relay->given) {
		consume(&relay->out, size);
		relay->given -= size;
	}
	if (!length_of(&relay->out))
		relay->given = 0;
}

/* Hears when the far end takes nothing more. */
static void watch_far_end(struct relay *relay)
{
	const short events = far_events(relay);

	if (!watches_far(relay))
		return;
	if (!is_ours(relay) && !relay->watching.number) {
		want(relay, &relay->watching, GHOST_WATCH, events, 0);
	} else if (is_ours(relay)) {
		struct pollfd poller = { .fd = relay->far, .events = events };

		if (poll(&poller, 1, 0) > 0 && poller.revents & (events | POLLHUP))
			see_far(relay, poller.revents);
	}
}

static bool is_over(const struct relay *relay)
{
	if (relay->telling.number)
		return false;
	/* Who was on the other side of datagrams hears that by the end of ours. */
	if (is_datagram(relay))
		return (has(relay, RELAY_NEAR_ENDED) && !length_of(&relay->out)) ||
			(has(relay, RELAY_FAR_GONE) && !length_of(&relay->in) &&
			 has(relay, RELAY_FAR_ENDED | RELAY_IN_BROKEN));
	return (relay->in_shut || has(relay, RELAY_IN_BROKEN)) &&
		has(relay, RELAY_OUT_SHUT | RELAY_OUT_BROKEN);
}

static bool tell_far(struct relay *relay, int half)
{
	if (is_ours(relay))
		(void)shutdown(relay->far, half);
	else if (!relay->telling.number)
		want(relay, &relay->telling, GHOST_SHUTDOWN, half, 0);
	else
		return false;
	return true;
}

/* Tells either side what the other one has ended. */
static void pass_on_ends(struct relay *relay)
{
	watch_far_end(relay);
	if (has(relay, RELAY_OUT_BROKEN) && !relay->out_told && !has(relay, RELAY_FAR_GONE)) {
		(void)shutdown(relay->near, SHUT_RD);
		relay->out_told = true;
	}
	if (is_over(relay))
		return;
	/* What its other end says to one that is gone is lost; the end of ours tells that. */
	if (has(relay, RELAY_IN_BROKEN) && !has(relay, RELAY_FAR_ENDED) && !relay->read_shut &&
	    !is_gone(relay))
		relay->read_shut = tell_far(relay, SHUT_RD);
	if (has(relay, RELAY_NEAR_ENDED) && !is_datagram(relay) &&
	    !has(relay, RELAY_OUT_SHUT | RELAY_OUT_BROKEN) && !length_of(&relay->out) &&
	    tell_far(relay, SHUT_WR))
		relay->flags |= RELAY_OUT_SHUT;
}

static bool save(struct relay *relay)
{
	const struct relay_saved head = {
		.flags = relay->flags, .uid = relay->uid, .gid = relay->gid,
		.type = (uint32_t)relay->type, .send_room = (uint32_t)relay->send_room,
		.in = (uint32_t)length_of(&relay->in), .out = (uint32_t)length_of(&relay->out),
	};
	FILE *file = fdopen(relay->file, "w");
	bool written;

	if (!file)
		return false;
	relay->file = -1;
	written = fwrite(&head, sizeof(head), 1, file) == 1 &&
		fwrite(relay->in.data + relay->in.begin, 1, head.in, file) == head.in &&
		fwrite(relay->out.data + relay->out.begin, 1, head.out, file) == head.out;
	return !fclose(file) && written;
}

/* Once nothing is under way: no more can be written to the socket. */
static void try_freeze(struct relay *relay)
{
	if (relay->reading.number || relay->writing.number || relay->telling.number ||
	    relay->watching.number)
		return;
	/* The ghost has the rest. */
	if (is_cut(relay, &relay->in) && !has(relay, RELAY_FAR_ENDED)) {
		want(relay, &relay->reading, GHOST_READ, PIECE, 0);
		return;
	}
	relay->given = 0;
	fill_out(relay, MOST_SAVED);
	relay->state = RELAY_FROZEN;
	report(RELAY_RESULT, relay->number, relay->asked, save(relay) ? 0 : -EIO);
}

/* Does what can be done now; it may be gone then. */
static void run(struct relay *relay)
{
	if (relay->state == RELAY_FREEZES)
		try_freeze(relay);
	if (relay->state != RELAY_RUNS)
		return;
	if (is_ours(relay))
		fill_in(relay);
	pour_in(relay);
	/* Nothing tells when what has come is poured out: more is ordered at once. */
	if (!is_ours(relay))
		fill_in(relay);
	fill_out(relay, MOST_OUT);
	pour_out(relay);
	pass_on_ends(relay);
	if (is_over(relay))
		end(relay);
}

/* -- what is ordered -------------------------------------------------------------------------- */

static struct relay *find_relay(uint32_t number)
{
	struct relay *relay = relays;

	while (relay && relay->number != number)
		relay = relay->next;
	return relay;
}

static bool read_bytes(FILE *file, struct buffer *buffer, size_t size)
{
	unsigned char *place = size ? make_room(buffer, size) : NULL;

	if (!size)
		return true;
	if (!place || fread(place, 1, size, file) != size)
		return false;
	buffer->end += size;
	return true;
}

/* Reads a file of state, and closes it. */
static bool load(int fd, struct relay_saved *head, struct buffer *in, struct buffer *out)
{
	struct relay like = { 0 };
	FILE *file = fdopen(fd, "r");
	bool whole;

	if (!file) {
		close(fd);
		return false;
	}
	whole = fread(head, sizeof(*head), 1, file) == 1 && head->in <= MOST_SAVED &&
		head->out <= MOST_SAVED && read_bytes(file, in, head->in) &&
		read_bytes(file, out, head->out);
	(void)fclose(file);
	like.type = (int)head->type;
	return whole && !is_cut(&like, in) && !is_cut(&like, out);
}

/* SO_PEERCRED of both ends is who makes them. */
static int make_pair(const struct relay_saved *head, int pair[2])
{
	const int none = 0, half = (int)(head->send_room / 2);
	int failed;

	if (setegid(head->gid) || seteuid(head->uid))
		failed = -1;
	else
		failed = socketpair(AF_UNIX, (int)head->type | SOCK_CLOEXEC, 0, pair);
	if (seteuid(0) || setegid(0))
		abort();
	if (failed)
		return failed;
	/* A descriptor cannot go along: who sends one is to hear that. */
	(void)setsockopt(pair[1], SOL_SOCKET, SO_PASSRIGHTS, &none, sizeof(none));
	/* The kernel doubles what it is told. */
	(void)setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &half, sizeof(half));
	return 0;
}

/* Gives the socket the halves that it has left. */
static void take_flags(struct relay *relay, uint32_t flags)
{
	relay->flags |= flags;
	if (has(relay, RELAY_NEAR_ENDED) || (has(relay, RELAY_OUT_BROKEN) && !has(relay, RELAY_FAR_GONE))) {
		(void)shutdown(relay->near, SHUT_RD);
		relay->out_told = true;
	}
	if (has(relay, RELAY_IN_BROKEN) && !is_datagram(relay)) {
		(void)shutdown(relay->near, SHUT_WR);
		relay->in_shut = true;
	}
}

static void add(const struct relay_order *order, const int come[MOST_COME])
{
	struct relay *relay = calloc(1, sizeof(*relay));
	struct relay_report head = { .kind = RELAY_RESULT, .id = order->id, .result = -ENOMEM };
	struct relay_saved saved = { 0 };
	struct stat file;
	int pair[2] = { -1, -1 };

	if (!relay || !load(come[0], &saved, &relay->in, &relay->out) || make_pair(&saved, pair) ||
	    fstat(pair[0], &file)) {
		if (relay) {
			clear(&relay->in);
			clear(&relay->out);
		}
		free(relay);
		close(come[1]);
		say(&head, NULL, 0, -1);
		return;
	}
	relay->number = ++last_relay & SERIAL_MASK;
	relay->state = RELAY_RESTS;
	relay->uid = saved.uid;
	relay->gid = saved.gid;
	relay->type = (int)saved.type;
	relay->send_room = (int)saved.send_room;
	relay->handle = (uint64_t)order->value;
	relay->inode = file.st_ino;
	relay->near = pair[1];
	relay->far = come[1];
	relay->file = -1;
	memcpy(relay->move, order->move, sizeof(relay->move));
	relay->next = relays;
	relays = relay;
	/* Before a half is shut: what it has in its socket the process may read all the same. */
	pour_in(relay);
	take_flags(relay, saved.flags);
	head.relay = relay->number;
	head.result = relay->number;
	head.handle = relay->inode;
	say(&head, NULL, 0, pair[0]);
	close(pair[0]);
}

/* Takes messages back that the process has not received; false without memory. Bytes are looked at where
 * they are. */
static bool take_back(struct relay *relay, int socket)
{
	struct buffer in = { 0 };
	bool whole = true;

	while (!is_stream(relay) && receive_message(&in, socket) > 0)
		;
	if (length_of(&in)) {
		whole = append(&in, begin_of(&relay->in), length_of(&relay->in));
		clear(&relay->in);
		relay->in = in;
	}
	return whole;
}

static void freeze(const struct relay_order *order, const int come[MOST_COME])
{
	struct relay *relay = find_relay(order->relay);
	const bool known = relay && relay->state == RELAY_RUNS;
	const struct wish *wishes[3];

	if (!known || !take_back(relay, come[1])) {
		report(RELAY_RESULT, order->relay, order->id, known ? -ENOMEM : -ESRCH);
		close(come[0]);
		close(come[1]);
		return;
	}
	close(come[1]);
	wishes[0] = &relay->reading;
	wishes[1] = &relay->writing;
	wishes[2] = &relay->watching;
	relay->state = RELAY_FREEZES;
	relay->asked = order->id;
	relay->file = come[0];
	memcpy(relay->move, order->move, sizeof(relay->move));
	for (size_t i = 0; i < sizeof(wishes) / sizeof(*wishes); i++)
		if (wishes[i]->number)
			report(RELAY_CANCEL, relay->number, wishes[i]->number, 0);
	run(relay);
}

static void give_back(const struct relay_order *order, const int come[MOST_COME])
{
	struct relay *relay = find_relay(order->relay);
	struct buffer in = { 0 }, out = { 0 };
	struct relay_saved saved = { 0 };
	bool whole = load(come[0], &saved, &in, &out) && relay && relay->state == RELAY_RUNS;

	if (whole) {
		ssize_t got;

		do
			got = receive(relay, &in, come[1]);
		while (got > 0);
		fill_out(relay, MOST_SAVED);
		whole = append(&in, begin_of(&relay->in), length_of(&relay->in)) &&
			append(&relay->out, begin_of(&out), length_of(&out));
	}
	if (whole) {
		const struct buffer before = relay->in;

		relay->in = in;
		in = before;
		take_flags(relay, saved.flags & RELAY_NEAR_ENDED);
	}
	clear(&in);
	clear(&out);
	close(come[1]);
	report(RELAY_RESULT, order->relay, order->id, whole ? 0 : -EIO);
	if (whole)
		run(relay);
}

static void go_on(struct relay *relay)
{
	if (relay->file >= 0)
		close(relay->file);
	relay->file = -1;
	relay->state = RELAY_RUNS;
	memset(relay->move, 0, sizeof(relay->move));
	run(relay);
}

static bool is_interrupted(int64_t result)
{
	return result == -EINTR || result == -EAGAIN;
}

static void hear_answer(struct relay *relay, const struct packet *packet, size_t length)
{
	const uint64_t number = packet->order.id;
	const int64_t result = packet->order.value;

	if (number == relay->reading.number) {
		relay->reading.number = 0;
		if (result == 0)
			relay->flags |= RELAY_FAR_ENDED;
		else if (result > 0 ? !append(&relay->in, packet->data, length) : !is_interrupted(result))
			lose_far(relay);
		if (has(relay, RELAY_IN_BROKEN))
			clear(&relay->in);
	} else if (number == relay->writing.number) {
		const size_t asked = relay->writing.size;

		relay->writing.number = 0;
		if (result >= 0)
			take_given(relay, (size_t)result);
		else if (!is_interrupted(result))
			fail_out(relay, (int)-result);
		/* The ghost has forgotten what it had of a message. */
		if (result < (int64_t)asked)
			relay->given = 0;
	} else if (number == relay->watching.number) {
		relay->watching.number = 0;
		if (!is_interrupted(result))
			see_far(relay, result < 0 ? 0 : (short)result);
	} else if (number == relay->telling.number) {
		relay->telling.number = 0;
	}
	run(relay);
}

static void obey(const struct packet *packet, size_t length, const int come[MOST_COME])
{
	const struct relay_order *order = &packet->order;
	struct relay *relay = find_relay(order->relay);

	switch (order->kind) {
	case RELAY_ADD:
		add(order, come);
		break;
	case RELAY_FREEZE:
		freeze(order, come);
		break;
	case RELAY_GIVE_BACK:
		give_back(order, come);
		break;
	case RELAY_GO_ON:
		if (relay && relay->state != RELAY_RUNS)
			go_on(relay);
		break;
	case RELAY_END:
		if (relay)
			end(relay);
		break;
	case RELAY_ANSWER:
		if (relay)
			hear_answer(relay, packet, length);
		report(RELAY_DONE, order->relay, order->id, 0);
		break;
	default:
		break;
	}
}

/* -- the daemon ------------------------------------------------------------------------------- */

static void take_daemon(void)
{
	if (!keeper_take_daemon())
		return;
	for (const struct relay *relay = relays; relay; relay = relay->next) {
		struct relay_report held = {
			.kind = RELAY_HELD, .relay = relay->number, .id = relay->inode,
			.handle = relay->handle, .value = relay->state,
		};

		memcpy(held.move, relay->move, sizeof(held.move));
		say(&held, NULL, 0, -1);
		say_wish(relay, &relay->reading);
		say_wish(relay, &relay->writing);
		say_wish(relay, &relay->watching);
		say_wish(relay, &relay->telling);
	}
	report(RELAY_TOLD, 0, 0, 0);
}

static void hear_daemon(void)
{
	static struct packet packet;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(MOST_COME * sizeof(int))];
	} control = { 0 };
	int come[MOST_COME] = { -1, -1 };
	struct iovec part = { .iov_base = &packet, .iov_len = sizeof(packet) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	const ssize_t got = recvmsg(keeper_daemon, &message, MSG_CMSG_CLOEXEC);

	if (got <= 0) {
		keeper_lose_daemon();
		return;
	}
	if (message.msg_controllen && control.head.cmsg_type == SCM_RIGHTS)
		memcpy(come, CMSG_DATA(&control.head), control.head.cmsg_len - CMSG_LEN(0));
	if ((size_t)got >= sizeof(packet.order))
		obey(&packet, (size_t)got - sizeof(packet.order), come);
}

struct polled {
	struct pollfd *pollers;
	size_t room;
};

static struct pollfd watch_near(const struct relay *relay)
{
	struct pollfd poller = { .fd = relay->near };
	const bool full = length_of(&relay->out) >= MOST_OUT;

	if (has_some(relay, &relay->in))
		poller.events |= POLLOUT;
	if (!has(relay, RELAY_NEAR_ENDED) && !full && !relay->out_told)
		poller.events |= POLLIN;
	if (is_datagram(relay) && !has(relay, RELAY_NEAR_ENDED) && !full)
		poller.events |= POLLMSG;
	if (!is_stream(relay) && !has(relay, RELAY_IN_BROKEN) && !relay->in_shut)
		poller.events |= POLLMSG | MESSAGES_REFUSED;
	if (relay->type == SOCK_SEQPACKET && has(relay, RELAY_FAR_ENDED) && !length_of(&relay->in) &&
	    !relay->in_shut)
		poller.events |= POLLMSG | MESSAGES_TAKEN;
	/* Otherwise that it is closed, unless it seems so anyway. */
	if (!poller.events && (relay->in_shut || has(relay, RELAY_IN_BROKEN)))
		poller.fd = -1;
	return poller;
}

static struct pollfd watch_far(const struct relay *relay)
{
	struct pollfd poller = { .fd = relay->far };
	if (!length_of(&relay->in) && !has(relay, RELAY_FAR_ENDED | RELAY_IN_BROKEN))
		poller.events |= POLLIN;
	if (length_of(&relay->out))
		poller.events |= POLLOUT;
	if (watches_far(relay))
		poller.events |= far_events(relay);
	if (!is_ours(relay) || is_mute(relay) || (!poller.events && !watches_far(relay)))
		poller.fd = -1;
	return poller;
}

/* Returns how many places are polled; two for each relay that runs, in their order. */
static size_t list_polled(struct polled *polled)
{
	size_t count = KEEPER_OTHERS;

	for (const struct relay *relay = relays; relay; relay = relay->next) {
		if (relay->state != RELAY_RUNS)
			continue;
		if (count + 2 > polled->room) {
			const size_t room = 2 * polled->room;
			void *pollers = realloc(polled->pollers, room * sizeof(*polled->pollers));

			if (!pollers)
				break;
			polled->pollers = pollers;
			polled->room = room;
		}
		polled->pollers[count++] = watch_near(relay);
		polled->pollers[count++] = watch_far(relay);
	}
	return count;
}

static void step(struct polled *polled)
{
	const size_t count = list_polled(polled);
	struct pollfd *pollers = polled->pollers;
	struct relay *relay = relays, *next;

	if (keeper_poll(pollers, count, -1) < 0)
		return;
	for (size_t i = KEEPER_OTHERS; i < count && relay; relay = next) {
		next = relay->next;
		if (relay->state != RELAY_RUNS)
			continue;
		if (pollers[i].revents || pollers[i + 1].revents)
			run(relay);
		i += 2;
	}
	if (pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

int main(int argc, char **argv)
{
	struct polled polled = { .room = 64 };

	if (argc != 2) {
		(void)fprintf(stderr, "usage: relay SOCKET\n");
		return 2;
	}
	/* Ghosts may remember orders of one before us. */
	last_relay = keeper_first_number();
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	if (!polled.pollers || !keeper_begin("relay", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
