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
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "asking.h"
#include "words.h"

enum { IMAGES = 3, MAX_WORDS = 64, MAX_FILES = 1 << 16, FAILED = 126, USER_ROOM = 4096 };

/* Writes down whose we are, and our limits, for who has to be a ghost again; false if that is too much. */
static bool describe_user(char *text, size_t size)
{
	gid_t groups[NGROUPS_MAX]; // NOLINT
	const int count = getgroups(NGROUPS_MAX, groups);
	struct rlimit limit;
	size_t length = (size_t)snprintf(text, size, "%s=%u %u", MOVE_USER, getuid(), getgid());

	if (count < 0)
		return false;
	for (int which = 0; which < RLIM_NLIMITS; which++) {
		if (getrlimit((__rlimit_resource_t)which, &limit))
			return false;
		length += (size_t)snprintf(text + length, size - length, " %ju %ju", (uintmax_t)limit.rlim_cur,
					   (uintmax_t)limit.rlim_max);
	}
	for (int i = 0; i < count && length < size; i++)
		length += (size_t)snprintf(text + length, size - length, " %u", groups[i]);
	return length < size;
}

static int come_home(int argc, char **argv)
{
	static struct answer answer;
	static char user[USER_ROOM];
	char *words[MAX_WORDS] = { NULL }, **variables;
	bool may_be_again;

	/* Whatever descriptors we are given: the daemon has duplicates of those that matter. */
	if (argc != 2 || close_range(0, UINT_MAX, 0) || open("/dev/null", O_RDWR) != STDIN_FILENO ||
	    dup(STDIN_FILENO) != STDOUT_FILENO || dup(STDIN_FILENO) != STDERR_FILENO)
		return FAILED;
	may_be_again = describe_user(user, sizeof(user));
	/* Only we are told, if it is we who are expected; and what comes with it is not at the place of the connection. */
	if (!ask_once(argv[1], MOVE_HOME, 0, &answer) || answer.packet.head.verdict != MOVE_GO_ON || answer.fd < 0)
		return FAILED;
	variables = list_words(&answer, words, MAX_WORDS - 1);
	if (!variables || !words[0] || dup2(answer.fd, IMAGES) != IMAGES || close_range(IMAGES + 1, UINT_MAX, 0))
		return FAILED;
	if (may_be_again)
		variables[answer.packet.head.variables] = user;
	if (setgroups(0, NULL) || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		return FAILED;
	/* A user's limits are not for CRIU, which sets them anew in the end. */
	for (int which = 0; which < RLIM_NLIMITS; which++)
		(void)setrlimit((__rlimit_resource_t)which, &(struct rlimit){
			which == RLIMIT_NOFILE ? MAX_FILES : RLIM_INFINITY,
			which == RLIMIT_NOFILE ? MAX_FILES : RLIM_INFINITY,
		});
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
