/*
 * launcher NODE NAMESPACE SOCKET: the parent of all that is started in a node's userland.
 *
 * It runs under the SSI filter, and so does whatever it starts. It keeps what must outlive the node
 * daemon: the filter's listener, and how its children have ended, each under a key, until the daemon
 * has heard it. It decides nothing. Started by the daemon, it is ended by the node's shutdown alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "filter.h"
#include "launcher.h"

enum {
	MAX_FDS = 64,
	MAX_STARTING = 256,
	MAX_STRINGS = 1 << 20,
	FILTERED_ERROR = 127,	/* what a shell's status says of a program that cannot be run */
};

/* What keeps a child from becoming the program. */
struct failure {
	int error;
	bool at_folder;
};

struct job {
	char key[LAUNCHER_KEY];
	pid_t pid;
	int failures;	/* until it is the program: a pipe that its exec closes, or -1 */
	bool ended;
	int status;
	struct job *next;
};

/* A request, its descriptors, and the strings that came in the first of them. */
struct request {
	union {
		struct launcher_request_head head;
		struct launcher_start start;
		char bytes[4096];
	} packet;
	int fds[MAX_FDS];
	size_t count;
	char *strings;
	size_t size;
};

static struct job *jobs;
static int listener = -1;

static struct job **find_job(const char *key)
{
	struct job **place = &jobs;

	while (*place && strcmp((*place)->key, key))
		place = &(*place)->next;
	return place;
}

/* -- what the daemon is told ------------------------------------------------------------------ */

static void reply_with(int daemon, uint32_t kind, const struct job *job, int fd)
{
	struct launcher_reply_packet packet = { .kind = kind };
	struct iovec part = { .iov_base = &packet, .iov_len = sizeof(packet) };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (job) {
		memcpy(packet.key, job->key, sizeof(packet.key));
		packet.pid = job->pid;
		packet.status = job->status;
	}
	if (fd >= 0) {
		struct cmsghdr *head;

		message.msg_control = control.bytes;
		message.msg_controllen = sizeof(control.bytes);
		head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), &fd, sizeof(int));
	}
	/* If it is gone, the next daemon asks for all of this. */
	(void)sendmsg(daemon, &message, MSG_NOSIGNAL);
}

static void tell(int daemon, const struct job *job)
{
	if (daemon >= 0 && job->failures < 0)
		reply_with(daemon, job->ended ? LAUNCHER_ENDED : LAUNCHER_STARTED, job, -1);
}

/* -- starting --------------------------------------------------------------------------------- */

/* Returns the words that `*next` begins with, and moves on behind them; NULL if they are not all there. */
static char **take_words(char **next, const char *end, uint32_t count)
{
	char **words;

	if (count > (size_t)(end - *next))
		return NULL;
	words = calloc((size_t)count + 1, sizeof(char *));
	for (uint32_t i = 0; words && i < count; i++) {
		char *stop = memchr(*next, 0, (size_t)(end - *next));

		if (!stop) {
			free(words);
			return NULL;
		}
		words[i] = *next;
		*next = stop + 1;
	}
	return words;
}

static int move_fds(const struct request *request)
{
	const unsigned int wanted = (unsigned int)request->count - 1;

	/* Above those that are wanted first, so that none is overwritten before it is moved. */
	for (unsigned int i = 0; i < wanted; i++) {
		int high = fcntl(request->fds[i + 1], F_DUPFD, MAX_FDS + 16);

		if (high < 0)
			return -1;
		if (dup2(high, (int)i) < 0)
			return -1;
	}
	return 0;
}

/* All signals as a fresh process has them; past the C library, which keeps two for itself. */
static void reset_signals(void)
{
	const uint64_t none = 0, fallback[4] = { 0 };

	for (int number = 1; number < NSIG; number++)
		(void)syscall(__NR_rt_sigaction, number, fallback, NULL, sizeof(none));
	(void)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof(none));
}

static int become(const struct launcher_start *start, const gid_t *groups)
{
	reset_signals();
	(void)setsid();
	(void)umask(start->umask);
	if (start->nice && setpriority(PRIO_PROCESS, 0, start->nice))
		return -1;
	if (setgroups(start->groups, groups))
		return -1;
	if (setresgid(start->gid, start->gid, start->gid))
		return -1;
	return setresuid(start->uid, start->uid, start->uid);
}

/* In the child: returns only if it cannot be run. */
static void run(const struct request *request, char **argv, char **environment, const char *folder,
		int failures, bool *at_folder)
{
	const struct launcher_start *start = &request->packet.start;

	if (move_fds(request) || become(start, (const gid_t *)(const void *)request->strings))
		return;
	if (chdir(folder)) {
		*at_folder = true;
		return;
	}
	/* The pipe for failures is closed by the exec. */
	if (close_range((unsigned int)request->count - 1, (unsigned int)failures - 1, 0) ||
	    close_range((unsigned int)failures + 1, UINT_MAX, 0))
		return;
	/* His PATH says where his program is; by now it is he who looks. */
	environ = environment;
	execvp(argv[0], argv);
}

static pid_t fork_as(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = pid ? (uint64_t)(uintptr_t)&pid : 0,
		.set_tid_size = pid ? 1 : 0,
	};

	return (pid_t)syscall(__NR_clone3, &args, sizeof(args));
}

/* Makes the new process, which is not the program yet; `job` gets a negative errno if that fails. */
static void start_words(const struct request *request, char **argv, char **environment,
			const char *folder, struct job *job)
{
	int failures[2];

	if (pipe2(failures, O_CLOEXEC | O_NONBLOCK)) {
		job->pid = -errno;
		return;
	}
	job->pid = fork_as(request->packet.start.pid);
	if (job->pid == 0) {
		/* Where no descriptor that is wanted can be. */
		int high = fcntl(failures[1], F_DUPFD_CLOEXEC, 2 * MAX_FDS + 32);
		struct failure failure = { .error = 0 };

		run(request, argv, environment, folder, high, &failure.at_folder);
		failure.error = errno;
		(void)!write(high, &failure, sizeof(failure));
		_exit(FILTERED_ERROR);
	}
	if (job->pid < 0)
		job->pid = -errno;
	close(failures[1]);
	if (job->pid > 0)
		job->failures = failures[0];
	else
		close(failures[0]);
}

static void start_job(struct request *request, struct job *job)
{
	const struct launcher_start *start = &request->packet.start;
	size_t groups = start->groups * sizeof(gid_t);
	char *next = request->strings, *end = request->strings + request->size;
	char **argv = NULL, **environment = NULL, **folder = NULL;

	if (start->groups <= NGROUPS_MAX && groups <= request->size && start->argc) {
		next += groups;
		argv = take_words(&next, end, start->argc);
		environment = argv ? take_words(&next, end, start->envc) : NULL;
		folder = environment ? take_words(&next, end, 1) : NULL;
	}
	if (folder && next == end)
		start_words(request, argv, environment, folder[0], job);
	free(argv);
	free(environment);
	free(folder);
}

/* What the first descriptor, a sealed file in memory, holds. */
static int read_strings(struct request *request)
{
	struct stat file;
	char *read_to;

	if (!request->count || fstat(request->fds[0], &file) || file.st_size > MAX_STRINGS)
		return -1;
	request->size = (size_t)file.st_size;
	request->strings = read_to = malloc(request->size + 1);
	if (!read_to || pread(request->fds[0], read_to, request->size, 0) != file.st_size)
		return -1;
	return 0;
}

static void answer_start(int daemon, struct request *request)
{
	struct job **place = find_job(request->packet.head.key), *job = *place;
	struct job made = { .pid = -EINVAL, .failures = -1 };

	/* It has been asked for before: the daemon that did it has died. */
	if (job) {
		tell(daemon, job);
		return;
	}
	memcpy(made.key, request->packet.head.key, sizeof(made.key));
	job = calloc(1, sizeof(*job));
	if (!job)
		made.pid = -ENOMEM;
	else if (!read_strings(request))
		start_job(request, &made);
	if (made.pid < 0) {
		tell(daemon, &made);
		free(job);
		return;
	}
	*job = made;
	*place = job;
}

/*
 * Looks whether the child of `*place` is the program by now, or has failed, and tells which; false if
 * it has failed and is forgotten. It may wait for the root, which must keep nobody else from starting.
 */
static bool look_after(int daemon, struct job **place)
{
	struct job *job = *place;
	struct failure failure;
	ssize_t size = read(job->failures, &failure, sizeof(failure));

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	close(job->failures);
	job->failures = -1;
	if (size != sizeof(failure)) {
		tell(daemon, job);
		return true;
	}
	job->pid = -failure.error;
	job->status = failure.at_folder;
	tell(daemon, job);
	*place = job->next;
	free(job);
	return false;
}

static void look_after_all(int daemon)
{
	struct job **place = &jobs;

	while (*place)
		if ((*place)->failures < 0 || look_after(daemon, place))
			place = &(*place)->next;
}

/* -- requests --------------------------------------------------------------------------------- */

static void forget(const char *key)
{
	struct job **place = find_job(key), *job = *place;

	if (job && job->ended) {
		*place = job->next;
		free(job);
	}
}

static bool receive(int daemon, struct request *request)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control;
	struct iovec part = { .iov_base = &request->packet, .iov_len = sizeof(request->packet) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	ssize_t size = recvmsg(daemon, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *head = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
		request->count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(request->fds, CMSG_DATA(head), request->count * sizeof(int));
	}
	request->packet.head.key[LAUNCHER_KEY - 1] = 0;
	if (size < (ssize_t)sizeof(struct launcher_request_head))
		return false;
	return request->packet.head.kind != LAUNCHER_START || size == sizeof(struct launcher_start);
}

/* Takes one request; false when the daemon is gone, or speaks otherwise than we do. */
static bool serve(int daemon)
{
	struct request request = { .count = 0 };
	bool understood = receive(daemon, &request);

	if (understood) {
		switch (request.packet.head.kind) {
		case LAUNCHER_START:
			answer_start(daemon, &request);
			break;
		case LAUNCHER_FORGET:
			forget(request.packet.head.key);
			break;
		case LAUNCHER_LISTENER:
			reply_with(daemon, LAUNCHER_LISTENS, NULL, listener);
			break;
		default:
			understood = false;
		}
	}
	for (size_t i = 0; i < request.count; i++)
		close(request.fds[i]);
	free(request.strings);
	return understood;
}

static void reap(int daemon)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		look_after_all(daemon);	/* what it said before it ended comes first */
		for (struct job *job = jobs; job; job = job->next) {
			if (job->ended || job->pid != pid)
				continue;
			job->ended = true;
			job->status = status;
			tell(daemon, job);
		}
	}
}

/* Those beyond the most that are polled are looked after when something else happens. */
static nfds_t list_starting(struct pollfd *pollers)
{
	nfds_t count = 0;

	for (const struct job *job = jobs; job && count < MAX_STARTING; job = job->next)
		if (job->failures >= 0)
			pollers[count++] = (struct pollfd){ .fd = job->failures, .events = POLLIN };
	return count;
}

static int greet(int server, int before)
{
	int daemon = accept4(server, NULL, NULL, SOCK_CLOEXEC);

	if (daemon < 0)
		return before;
	if (before >= 0)
		close(before);
	for (const struct job *job = jobs; job; job = job->next)
		tell(daemon, job);
	return daemon;
}

static int open_server(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (server < 0 || strlen(path) >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, strlen(path) + 1);
	(void)unlink(path);
	if (bind(server, (struct sockaddr *)&address, sizeof(address)) || listen(server, 8))
		return -1;
	return server;
}

static int fail(const char *what)
{
	fprintf(stderr, "launcher: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	int space, server, signals, daemon = -1;
	sigset_t set;

	if (argc != 4) {
		fprintf(stderr, "usage: launcher NODE NAMESPACE SOCKET\n");
		return 2;
	}
	server = open_server(argv[3]);
	if (server < 0)
		return fail(argv[3]);
	/* The root it is read from may be blocked while others recover; it is not. */
	if (mlockall(MCL_CURRENT))
		return fail("mlockall");
	space = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (space < 0 || setns(space, CLONE_NEWNS) || chdir("/"))
		return fail(argv[2]);
	close(space);
	/* SIGTERM ends it: so does the node's shutdown. */
	sigfillset(&set);
	sigdelset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return fail("signals");
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	listener = filter_install((uint32_t)strtoul(argv[1], NULL, 10) << PID_BITS);
	if (signals < 0 || listener < 0)
		return fail("the filter");
	for (;;) {
		struct pollfd pollers[3 + MAX_STARTING] = {
			{ .fd = signals, .events = POLLIN },
			{ .fd = server, .events = POLLIN },
			{ .fd = daemon, .events = POLLIN },
		};
		struct signalfd_siginfo info;

		if (poll(pollers, 3 + list_starting(pollers + 3), -1) < 0)
			continue;
		while (read(signals, &info, sizeof(info)) > 0)
			;
		look_after_all(daemon);
		reap(daemon);
		if (pollers[2].revents && !serve(daemon)) {
			close(daemon);
			daemon = -1;
		}
		if (pollers[1].revents)
			daemon = greet(server, daemon);
	}
}
