/*
 * A question to the node daemon about a move, and its answer (move.h).
 */
#ifndef SSI_ASKING_H
#define SSI_ASKING_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "move.h"

struct answer {
	union {
		struct move_answer head;
		char bytes[MOVE_MAX];
	} packet;
	size_t size;
	int fd;			/* a descriptor that has come with it, closed by an exec; -1 if none has */
};

static bool receive_answer(int daemon, struct answer *answer)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { .iov_base = &answer->packet, .iov_len = sizeof(answer->packet) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	ssize_t size;
	struct cmsghdr *head;

	do
		size = recvmsg(daemon, &message, MSG_CMSG_CLOEXEC);
	while (size < 0 && errno == EINTR);
	if (size < (ssize_t)sizeof(answer->packet.head))
		return false;
	answer->size = (size_t)size;
	answer->fd = -1;
	head = CMSG_FIRSTHDR(&message);
	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
		memcpy(&answer->fd, CMSG_DATA(head), sizeof(answer->fd));
	return true;
}

/* Tells whether a daemon has answered; `id` may be NULL. */
static bool ask_once(const char *id, uint32_t question, int32_t number, struct answer *answer)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = MOVE_SOCKET };
	struct move_request request = { .question = question, .number = number };
	const int daemon = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool answered;

	if (daemon < 0)
		return false;
	if (id)
		memcpy(request.id, id, strnlen(id, sizeof(request.id)));
	answered = !connect(daemon, (struct sockaddr *)&address, sizeof(address)) &&
		send(daemon, &request, sizeof(request), MSG_NOSIGNAL) > 0 &&
		receive_answer(daemon, answer);
	close(daemon);
	return answered;
}

#endif
