/*
 * homecoming MOVE: what a ghost becomes when its body comes home; set-user-ID root, as CRIU must be root.
 *
 * Anybody may run it. Only the process of which the node daemon expects it is told what to become, and
 * nothing but that is done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "move.h"

enum { IMAGES = 3, MAX_WORDS = 64, MAX_FILES = 1 << 16, FAILED = 126 };

static struct {
	struct move_answer head;
	char words[MOVE_MAX];
} answer;

/* Returns the images' descriptor, -1 if it is not we who are expected. */
static int ask(const char *move)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = MOVE_SOCKET };
	struct move_request request = { .question = MOVE_HOME };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { .iov_base = &answer, .iov_len = sizeof(answer) - 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	const int daemon = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct cmsghdr *head;
	int images;

	memcpy(request.id, move, strnlen(move, sizeof(request.id)));
	if (daemon < 0 || connect(daemon, (struct sockaddr *)&address, sizeof(address)) ||
	    send(daemon, &request, sizeof(request), MSG_NOSIGNAL) < 0 ||
	    recvmsg(daemon, &message, 0) < (ssize_t)sizeof(answer.head) ||
	    answer.head.verdict != MOVE_GO_ON)
		return -1;
	head = CMSG_FIRSTHDR(&message);
	if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&images, CMSG_DATA(head), sizeof(images));
	return images;
}

static int come_home(int argc, char **argv)
{
	char *words[MAX_WORDS + 2] = { NULL }, **variables;
	char *next = answer.words;
	int images;

	/* Whatever descriptors we are given: the daemon has duplicates of those that matter. */
	if (argc != 2 || close_range(0, UINT_MAX, 0) || open("/dev/null", O_RDWR) != STDIN_FILENO ||
	    dup(STDIN_FILENO) != STDOUT_FILENO || dup(STDIN_FILENO) != STDERR_FILENO)
		return FAILED;
	images = ask(argv[1]);
	if (images < 0 || answer.head.words > MAX_WORDS ||
	    answer.head.variables > answer.head.words)
		return FAILED;
	if (images != IMAGES && (dup2(images, IMAGES) < 0 || close_range(IMAGES + 1, UINT_MAX, 0)))
		return FAILED;
	if (setgroups(0, NULL) || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		return FAILED;
	/* A user's limits are not for CRIU, which sets them anew in the end. */
	for (int which = 0; which < RLIM_NLIMITS; which++)
		(void)setrlimit((__rlimit_resource_t)which, &(struct rlimit){
			which == RLIMIT_NOFILE ? MAX_FILES : RLIM_INFINITY,
			which == RLIMIT_NOFILE ? MAX_FILES : RLIM_INFINITY,
		});
	for (size_t i = 0, place = 0; i < answer.head.words; i++, place++) {
		/* The variables begin behind the end of the arguments. */
		if (i == answer.head.words - answer.head.variables)
			place++;
		words[place] = next;
		next += strlen(next) + 1;
		if (next > answer.words + sizeof(answer.words))
			return FAILED;
	}
	variables = words + answer.head.words - answer.head.variables + 1;
	execve(words[0], words, variables);
	return FAILED;
}

int main(int argc, char **argv)
{
	const int failure = come_home(argc, argv);

	/* As its parent hears of a process whose node was lost. */
	(void)kill(getpid(), SIGKILL);
	return failure;
}
