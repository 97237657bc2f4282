/*
 * What sockets of the types SOCK_DGRAM and SOCK_SEQPACKET carry, as bytes: of each message its length (a
 * uint32_t), then itself. So one without bytes is no end. What poll() says of such sockets if it is asked
 * for POLLMSG is image/kernel/patches/unix-messages.patch.
 */
#ifndef SSI_MESSAGES_H
#define SSI_MESSAGES_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "buffer.h"

#ifndef SO_SNDBUFFORCE
#define SO_SNDBUFFORCE 32
#endif

enum {
	MESSAGE_HEAD = sizeof(uint32_t),
	MESSAGE_MOST = 1024 * 1024,	/* bytes */
	/* What is asked besides POLLMSG. */
	MESSAGES_WAIT = POLLPRI,
	MESSAGES_REFUSED = POLLRDBAND,	/* its other end receives no more */
	MESSAGES_TAKEN = POLLWRBAND,	/* its other end has received all */
	MESSAGES_OVER = POLLMSG,	/* of SOCK_DGRAM: its other end has been closed */
};

static short look_at_messages(int fd)
{
	struct pollfd poller = {
		.fd = fd, .events = POLLMSG | POLLPRI | POLLRDBAND | POLLWRBAND | POLLRDHUP,
	};

	return poll(&poller, 1, 0) > 0 ? poller.revents : 0;
}

/* Returns the size of the first message with its head; 0 if it is not whole. */
static size_t find_message(const struct buffer *buffer)
{
	uint32_t size;

	if (length_of(buffer) < MESSAGE_HEAD)
		return 0;
	memcpy(&size, begin_of(buffer), sizeof(size));
	return length_of(buffer) - MESSAGE_HEAD < size ? 0 : MESSAGE_HEAD + (size_t)size;
}

/* Adds a message that waits, and returns its size; 0 if none comes any more, -1 with EAGAIN and others. */
static ssize_t receive_message(struct buffer *buffer, int fd)
{
	const short seen = look_at_messages(fd);
	socklen_t room = sizeof(int);
	unsigned char *place;
	uint32_t size;
	ssize_t got;
	int most = 0;

	/* That of its other end may have been closed before it read all: it is told before what waits. */
	if (seen & POLLERR)
		(void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &most, &room);
	if (!(seen & MESSAGES_WAIT)) {
		errno = EAGAIN;
		return seen & (MESSAGES_OVER | POLLRDHUP | POLLHUP | POLLNVAL) ? 0 : -1;
	}
	/* Of SOCK_SEQPACKET those of all messages. */
	if (ioctl(fd, FIONREAD, &most))
		return -1;
	if (most > MESSAGE_MOST)
		most = MESSAGE_MOST;
	place = make_room(buffer, MESSAGE_HEAD + (size_t)most);
	if (!place) {
		errno = ENOMEM;
		return -1;
	}
	got = recv(fd, place + MESSAGE_HEAD, (size_t)most, MSG_DONTWAIT | MSG_TRUNC);
	if (got > most) {
		errno = EMSGSIZE;
		got = -1;
	}
	if (got < 0) {
		if (!length_of(buffer))
			clear(buffer);
		return -1;
	}
	size = (uint32_t)got;
	memcpy(place, &size, sizeof(size));
	buffer->end += MESSAGE_HEAD + size;
	return MESSAGE_HEAD + got;
}

/* Sends the first message, which is whole, and takes it out; as send(). */
static ssize_t send_message(struct buffer *buffer, int fd)
{
	const size_t size = find_message(buffer), length = size - MESSAGE_HEAD;
	const unsigned char *data = begin_of(buffer) + MESSAGE_HEAD;
	const int more = (int)length;
	ssize_t sent;

	/* To find that out by sending costs what has not been received. */
	if (look_at_messages(fd) & MESSAGES_OVER) {
		errno = ECONNREFUSED;
		return -1;
	}
	sent = send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	/* Its first sender had it take more. */
	if (sent < 0 && errno == EMSGSIZE &&
	    (!setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &more, sizeof(more)) ||
	     !setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &more, sizeof(more))))
		sent = send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0)
		return -1;
	consume(buffer, size);
	return sent;
}

#endif
