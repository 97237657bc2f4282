/*
 * launcher NODE NAMESPACE SOCKET: the parent of all that is started in a node's userland.
 *
 * It runs under the SSI filter, and so does whatever it starts. It keeps what must outlive the node
 * daemon: the filter's listener and other descriptors, and how its children fare, each under a key,
 * until the daemon has heard it. It decides nothing. Started by the daemon, it is ended by the node's
 * shutdown alone.
 *
 * A stand-in is a fork of it that has the PID of a process of another node: here that one's children
 * are born, with the parent, the session and the group that they have there.
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
#include <sys/mount.h>
#include <sys/prctl.h>
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
	BACKLOG = 8,
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
	bool ended, changed;
	int status;
	struct job *next;
};

struct kept {
	char key[LAUNCHER_KEY];
	int fd;
	struct kept *next;
};

/* A request, its descriptors, and the details that came in the first of them. */
struct request {
	union {
		struct launcher_request_head head;
		struct launcher_start start;
		char bytes[4096];
	} packet;
	int fds[MAX_FDS];
	size_t count;
	char *details;
	size_t size;
};

/* How the new process is to be, as the details have it. */
struct wishes {
	const struct launcher_start *start;
	const uint64_t *limits;
	const gid_t *groups;
	const uint32_t *numbers;
	char **argv, **environment, **folder;
};

static struct job *jobs;
static struct kept *kept;
static int server, signals, daemon_fd = -1;

static void serve_forever(void) __attribute__((noreturn));

static struct job **find_job(const char *key)
{
	struct job **place = &jobs;

	while (*place && strcmp((*place)->key, key))
		place = &(*place)->next;
	return place;
}

/* -- what the daemon is told ------------------------------------------------------------------ */

static void reply(uint32_t kind, const char *key, pid_t pid, int status, int fd)
{
	struct launcher_reply_packet packet = { .kind = kind, .pid = pid, .status = status };
	struct iovec part = { .iov_base = &packet, .iov_len = sizeof(packet) };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	memcpy(packet.key, key, strlen(key));
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
	/* If it is gone, the next daemon is told all of this. */
	if (daemon_fd >= 0)
		(void)sendmsg(daemon_fd, &message, MSG_NOSIGNAL);
}

static void tell(const struct job *job)
{
	if (job->failures >= 0)
		return;
	if (job->ended) {
		reply(LAUNCHER_ENDED, job->key, job->pid, job->status, -1);
		return;
	}
	reply(LAUNCHER_STARTED, job->key, job->pid, job->status, -1);
	if (job->changed)
		reply(LAUNCHER_CHANGED, job->key, job->pid, job->status, -1);
}

static int open_server(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, strlen(path) + 1);
	(void)unlink(path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, BACKLOG))
		return -1;
	return fd;
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

/* Gives the descriptors their numbers, closes all others but `failures`, which is moved out of the way. */
static int move_fds(const struct request *request, const struct wishes *wishes, int *failures)
{
	const uint32_t count = wishes->start->fds;
	uint32_t end = 0;
	int high[MAX_FDS];

	for (uint32_t i = 0; i < count; i++)
		if (wishes->numbers[i] >= end)
			end = wishes->numbers[i] + 1;
	/* Above those that are wanted first, so that none is overwritten before it is moved. */
	*failures = fcntl(*failures, F_DUPFD_CLOEXEC, (int)end);
	for (uint32_t i = 0; i < count; i++)
		if ((high[i] = fcntl(request->fds[i + 1], F_DUPFD_CLOEXEC, (int)end)) < 0)
			return -1;
	if (end && close_range(0, end - 1, 0))
		return -1;
	for (uint32_t i = 0; i < count; i++)
		if (dup2(high[i], (int)wishes->numbers[i]) < 0)
			return -1;
	if ((unsigned int)*failures > end && close_range(end, (unsigned int)*failures - 1, 0))
		return -1;
	return close_range((unsigned int)*failures + 1, UINT_MAX, 0);
}

/* Past the C library, which keeps two signals for itself. */
static void set_signals(uint64_t blocked, uint64_t ignored)
{
	for (int number = 1; number < NSIG; number++) {
		const bool ignore = ignored >> (number - 1) & 1;
		const uint64_t action[4] = { (uint64_t)(uintptr_t)(ignore ? SIG_IGN : SIG_DFL) };

		(void)syscall(__NR_rt_sigaction, number, action, NULL, sizeof(blocked));
	}
	(void)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &blocked, NULL, sizeof(blocked));
}

static int take_place(const struct launcher_start *start)
{
	if (start->flags & LAUNCHER_SESSION && setsid() < 0)
		return -1;
	if (start->group >= 0 && !(start->flags & LAUNCHER_SESSION))
		return setpgid(0, start->group);
	return 0;
}

/* A mount namespace in which only this differs: other mounts come and go as in the first one. */
static int make_visitors_space(const char *devices)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/dev", NULL, MS_SLAVE, NULL))
		return -1;
	return mount(devices, "/dev", NULL, MS_BIND, NULL);
}

static int become(const struct wishes *wishes)
{
	const struct launcher_start *start = wishes->start;

	for (uint32_t i = 0; i < start->limits; i++) {
		const struct rlimit limit = {
			.rlim_cur = wishes->limits[2 * i], .rlim_max = wishes->limits[2 * i + 1],
		};

		if (setrlimit((__rlimit_resource_t)i, &limit))
			return -1;
	}
	(void)umask(start->umask);
	if (start->nice && setpriority(PRIO_PROCESS, 0, start->nice))
		return -1;
	if (setgroups(start->groups, wishes->groups))
		return -1;
	if (setresgid(start->gid, start->egid, start->egid))
		return -1;
	if (setresuid(start->uid, start->euid, start->euid))
		return -1;
	if (start->flags & LAUNCHER_NO_NEW_PRIVILEGES && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	/* Last: it is cleared when a process changes whose it is. */
	if (start->death_signal && prctl(PR_SET_PDEATHSIG, (unsigned long)start->death_signal))
		return -1;
	return 0;
}

/* In the child: a launcher anew, without what the first one keeps and has started. */
static void __attribute__((noreturn)) stand_in(const struct request *request, int failures)
{
	close(server);
	server = request->fds[1];
	/* Again: who connects shall see that it is we who listen. */
	(void)listen(server, BACKLOG);
	if (daemon_fd >= 0)
		close(daemon_fd);
	daemon_fd = -1;
	for (const struct kept *one = kept; one; one = one->next)
		close(one->fd);
	for (const struct job *job = jobs; job; job = job->next)
		if (job->failures >= 0)
			close(job->failures);
	/* Their memory is the first one's and stays as it is. */
	kept = NULL;
	jobs = NULL;
	close(failures);
	serve_forever();
}

/* In the child: returns only if it cannot be what is wished. */
static void run(const struct request *request, const struct wishes *wishes, int *failures,
		bool *at_folder)
{
	const struct launcher_start *start = wishes->start;

	if (take_place(start) ||
	    (start->flags & LAUNCHER_VISITORS && make_visitors_space(wishes->folder[0])))
		return;
	if (!start->argc)
		stand_in(request, *failures);
	if (move_fds(request, wishes, failures) || become(wishes))
		return;
	if (chdir(wishes->folder[0])) {
		*at_folder = true;
		return;
	}
	/* His PATH says where his program is; by now it is he who looks. */
	environ = wishes->environment;
	set_signals(start->blocked, start->ignored);
	execvp(wishes->argv[0], wishes->argv);
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
static void start_wished(const struct request *request, const struct wishes *wishes, struct job *job)
{
	int failures[2];

	if (pipe2(failures, O_CLOEXEC | O_NONBLOCK)) {
		job->pid = -errno;
		return;
	}
	job->pid = wishes->start->flags & LAUNCHER_IN_PLACE ? 0 : fork_as(wishes->start->pid);
	if (job->pid == 0) {
		struct failure failure = { .error = 0 };

		run(request, wishes, &failures[1], &failure.at_folder);
		failure.error = errno;
		(void)!write(failures[1], &failure, sizeof(failure));
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

/* Takes `count` things of `size` bytes from the details; NULL if there are not so many. */
static const void *take_numbers(char **next, const char *end, uint32_t count, size_t size)
{
	const void *numbers = *next;

	if (count > (size_t)(end - *next) / size)
		return NULL;
	*next += count * size;
	return numbers;
}

static void start_job(struct request *request, struct job *job)
{
	const struct launcher_start *start = &request->packet.start;
	struct wishes wishes = { .start = start };
	char *next = request->details;
	const char *end = request->details + request->size;

	if (start->limits <= RLIM_NLIMITS && start->groups <= NGROUPS_MAX && start->fds < MAX_FDS) {
		wishes.limits = take_numbers(&next, end, start->limits, 2 * sizeof(uint64_t));
		wishes.groups = take_numbers(&next, end, start->groups, sizeof(gid_t));
		wishes.numbers = take_numbers(&next, end, start->fds, sizeof(uint32_t));
	}
	/* A stand-in has one descriptor, its socket. */
	if (wishes.limits && wishes.groups && wishes.numbers && start->fds + 1 == request->count &&
	    (start->argc || start->fds == 1))
		wishes.argv = take_words(&next, end, start->argc);
	wishes.environment = wishes.argv ? take_words(&next, end, start->envc) : NULL;
	wishes.folder = wishes.environment ? take_words(&next, end, 1) : NULL;
	if (wishes.folder && next == end)
		start_wished(request, &wishes, job);
	free(wishes.argv);
	free(wishes.environment);
	free(wishes.folder);
}

/* What the first descriptor, a file in memory, holds. */
static int read_details(struct request *request)
{
	struct stat file;

	if (!request->count || fstat(request->fds[0], &file) || file.st_size > MAX_STRINGS)
		return -1;
	request->size = (size_t)file.st_size;
	request->details = malloc(request->size + 1);
	if (!request->details ||
	    pread(request->fds[0], request->details, request->size, 0) != file.st_size)
		return -1;
	return 0;
}

static void answer_start(struct request *request)
{
	struct job **place = find_job(request->packet.head.key), *job = *place;
	struct job made = { .pid = -EINVAL, .failures = -1 };

	/* It has been asked for before: the daemon that did it has died. */
	if (job) {
		tell(job);
		return;
	}
	memcpy(made.key, request->packet.head.key, sizeof(made.key));
	job = calloc(1, sizeof(*job));
	if (!job)
		made.pid = -ENOMEM;
	else if (!read_details(request))
		start_job(request, &made);
	if (made.pid < 0) {
		tell(&made);
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
static bool look_after(struct job **place)
{
	struct job *job = *place;
	struct failure failure;
	ssize_t size = read(job->failures, &failure, sizeof(failure));

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	close(job->failures);
	job->failures = -1;
	if (size != sizeof(failure)) {
		tell(job);
		return true;
	}
	job->pid = -failure.error;
	job->status = failure.at_folder;
	tell(job);
	*place = job->next;
	free(job);
	return false;
}

static void look_after_all(void)
{
	struct job **place = &jobs;

	while (*place)
		if ((*place)->failures < 0 || look_after(place))
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

/* Takes over the request's descriptor. */
static void keep(struct request *request)
{
	const char *key = request->packet.head.key;
	struct kept *one = kept;

	if (request->count != 1)
		return;
	while (one && strcmp(one->key, key))
		one = one->next;
	if (one) {
		close(one->fd);
	} else {
		one = calloc(1, sizeof(*one));
		if (!one)
			return;
		memcpy(one->key, key, sizeof(one->key));
		one->next = kept;
		kept = one;
	}
	one->fd = request->fds[0];
	request->count = 0;
}

static bool receive(struct request *request)
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
	ssize_t size = recvmsg(daemon_fd, &message, MSG_CMSG_CLOEXEC);
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
static bool serve(void)
{
	struct request request = { .count = 0 };
	bool understood = receive(&request);

	if (understood) {
		switch (request.packet.head.kind) {
		case LAUNCHER_START:
			answer_start(&request);
			break;
		case LAUNCHER_FORGET:
			forget(request.packet.head.key);
			break;
		case LAUNCHER_KEEP:
			keep(&request);
			break;
		case LAUNCHER_END:
			_exit(0);
		default:
			understood = false;
		}
	}
	for (size_t i = 0; i < request.count; i++)
		close(request.fds[i]);
	free(request.details);
	return understood;
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0) {
		look_after_all();	/* what it said before it ended comes first */
		for (struct job *job = jobs; job; job = job->next) {
			if (job->ended || job->pid != pid)
				continue;
			job->changed = true;
			job->ended = WIFEXITED(status) || WIFSIGNALED(status);
			job->status = status;
			tell(job);
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

/* What a daemon has asked for before it was killed is done before the next one is heard. */
static void serve_all(void)
{
	struct pollfd poller = { .fd = daemon_fd, .events = POLLIN };

	while (daemon_fd >= 0 && poll(&poller, 1, 0) > 0) {
		if (serve())
			continue;
		close(daemon_fd);
		daemon_fd = -1;
	}
}

static void greet(void)
{
	int daemon = accept4(server, NULL, NULL, SOCK_CLOEXEC);

	if (daemon < 0)
		return;
	if (daemon_fd >= 0)
		close(daemon_fd);
	daemon_fd = daemon;
	for (const struct job *job = jobs; job; job = job->next)
		tell(job);
	for (const struct kept *one = kept; one; one = one->next)
		reply(LAUNCHER_KEPT, one->key, 0, 0, one->fd);
	reply(LAUNCHER_TOLD, "", 0, 0, -1);
}

static void serve_forever(void)
{
	for (;;) {
		struct pollfd pollers[3 + MAX_STARTING] = {
			{ .fd = signals, .events = POLLIN },
			{ .fd = server, .events = POLLIN },
			{ .fd = daemon_fd, .events = POLLIN },
		};
		struct signalfd_siginfo info;

		if (poll(pollers, 3 + list_starting(pollers + 3), -1) < 0)
			continue;
		while (read(signals, &info, sizeof(info)) > 0)
			;
		look_after_all();
		reap();
		serve_all();
		if (pollers[1].revents)
			greet();
	}
}

/* 0 if this kernel has none. */
static uint32_t read_ipc_range(void)
{
	const int fd = open("/proc/sys/kernel/ipc_range", O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return (uint32_t)strtoul(text, NULL, 10);
}

static int fail(const char *what)
{
	fprintf(stderr, "launcher: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	/* The kernel's own: the daemon has more, which is nothing for programs to inherit. */
	const struct rlimit descriptors = { .rlim_cur = 1024, .rlim_max = 4096 };
	struct kept *own = calloc(1, sizeof(*own));
	uint32_t range;
	int space;
	sigset_t set;

	if (argc != 4) {
		fprintf(stderr, "usage: launcher NODE NAMESPACE SOCKET\n");
		return 2;
	}
	server = open_server(argv[3]);
	if (server < 0)
		return fail(argv[3]);
	/* The root it is read from may be blocked while others recover; it is not. */
	if (!own || mlockall(MCL_CURRENT))
		return fail("mlockall");
	range = read_ipc_range();
	space = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (space < 0 || setns(space, CLONE_NEWNS) || chdir("/") ||
	    mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL))
		return fail(argv[2]);
	close(space);
	if (setrlimit(RLIMIT_NOFILE, &descriptors))
		return fail("limits");
	/* SIGTERM ends it: so does the node's shutdown. */
	sigfillset(&set);
	sigdelset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return fail("signals");
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	own->fd = filter_install((uint32_t)strtoul(argv[1], NULL, 10) << PID_BITS, range);
	if (signals < 0 || own->fd < 0)
		return fail("the filter");
	memcpy(own->key, "listener", sizeof("listener"));
	kept = own;
	serve_forever();
}
