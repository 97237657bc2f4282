/*
 * onnode, fast: have a command run on another node, and be its ghost here.
 *
 * The node daemon starts the command there with our PID (the body) and tells us what to do: read, write
 * and control our descriptors for it, stop, go on and end as it does. We tell the daemon which signals
 * we get. Parent, group, session and terminal see an ordinary process of theirs. We survive the daemon:
 * the next one gets the same request, knows us by our PID, and may ask again for what we have done.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>

#include "children.h"
#include "ghost.h"
#include "local.h"
#include "messages.h"

#define HOMECOMING "/usr/lib/ssi/homecoming"

enum {
	UNAVAILABLE = 69,	/* EX_UNAVAILABLE */
	NOT_EXECUTABLE = 126,	/* as a shell has it */
	NOT_FOUND = 127,
	MAX_POLLED = 256,
	OURS = 64,		/* where our own descriptors begin: those below are the body's */
	MAX_IOCTL = 4096,
	DEATH_NOTICE = 64,	/* SIGRTMAX, by which the kernel tells that our parent has ended */
};

/* An order under way; when it is done, its answer, until that has arrived. */
struct task {
	struct ghost_order order;
	size_t length, written;
	size_t before;		/* bytes of a message that came with orders before this one */
	bool taken, done;
	int64_t result;
	struct task *next;
	unsigned char data[];
};

/* A description of its own for a descriptor, that does not wait. */
struct twin {
	int fd, own;
	struct twin *next;
};

/* What is cut of the messages of a socket: of one received, and of one to be sent. */
struct cut {
	int fd;
	struct buffer in, out;
	struct cut *next;
};

static struct task *tasks;
static struct cut *cuts;
static struct twin *twins;
static struct local_frame frame;
static const char *name;
static int daemon_fd = -1, signals;
static pid_t parent;
static bool orphaned;
static struct ghost_hello hello;
static char *request;
static size_t request_size;

/* -- reports ---------------------------------------------------------------------------------- */

static void report(uint32_t kind, uint64_t id, int64_t result, const void *data, size_t length)
{
	static unsigned char bytes[LOCAL_MAX_FRAME];
	const struct ghost_report head = { .kind = kind, .id = id, .result = result };

	memcpy(bytes, &head, sizeof(head));
	if (length)
		memcpy(bytes + sizeof(head), data, length);
	/* If the daemon is gone, the next one asks. */
	(void)local_send_frame(daemon_fd, LOCAL_REPORT, bytes, sizeof(head) + length);
}

static void answer(struct task *task)
{
	const uint32_t kind = task->order.kind;
	size_t length = 0;

	if (task->result >= 0 && kind == GHOST_READ)
		length = (size_t)task->result;
	else if (task->result >= 0 && kind == GHOST_IOCTL)
		length = task->order.size;
	report(GHOST_RESULT, task->order.id, task->result, task->data, length);
}

static void finish(struct task *task, int64_t result)
{
	task->done = true;
	task->result = result;
	answer(task);
}

/* -- descriptors ------------------------------------------------------------------------------ */

/* Flags belong to all who share a description, so what must not wait is done on one of our own. */
static int twin_of(int fd)
{
	char path[32];
	struct twin *twin = twins;
	int flags, low;

	while (twin && twin->fd != fd)
		twin = twin->next;
	if (twin)
		return twin->own;
	flags = fcntl(fd, F_GETFL);
	twin = malloc(sizeof(*twin));
	if (flags < 0 || !twin) {
		free(twin);
		return fd;
	}
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	*twin = (struct twin){ .fd = fd, .next = twins };
	low = open(path, (flags & (O_ACCMODE | O_APPEND)) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	/* Not where our standard error was, if the body has taken that along. */
	twin->own = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, OURS);
	if (low >= 0)
		close(low);
	if (twin->own < 0)
		twin->own = fd;	/* those who use it poll first */
	twins = twin;
	return twin->own;
}

/* Returns NULL without memory. */
static struct cut *cut_of(int fd)
{
	struct cut *cut = cuts;

	while (cut && cut->fd != fd)
		cut = cut->next;
	if (cut)
		return cut;
	cut = calloc(1, sizeof(*cut));
	if (!cut)
		return NULL;
	cut->fd = fd;
	cut->next = cuts;
	cuts = cut;
	return cut;
}

static void forget_cut(int fd)
{
	struct cut **place = &cuts, *cut;

	while (*place && (*place)->fd != fd)
		place = &(*place)->next;
	cut = *place;
	if (!cut)
		return;
	*place = cut->next;
	clear(&cut->in);
	clear(&cut->out);
	free(cut);
}

static void close_both(int fd)
{
	struct twin **place = &twins, *twin;

	while (*place && (*place)->fd != fd)
		place = &(*place)->next;
	twin = *place;
	if (twin) {
		if (twin->own != fd)
			close(twin->own);
		*place = twin->next;
		free(twin);
	}
	forget_cut(fd);
	close(fd);
}

static bool is_ready(int fd, short events)
{
	struct pollfd poller = { .fd = fd, .events = events };

	return poll(&poller, 1, 0) > 0;
}

/* Whether `fd` is our terminal, and others are in its foreground. */
static bool in_background(int fd)
{
	const pid_t group = tcgetpgrp(fd);

	return group > 0 && group != getpgrp();
}

static bool stops_writers(int fd)
{
	struct termios settings;

	return in_background(fd) && !tcgetattr(fd, &settings) && settings.c_lflag & TOSTOP;
}

/* -- what is ordered -------------------------------------------------------------------------- */

/* Whether a file offset matters there: then it must be that of the description all share. */
static bool has_offset(int fd)
{
	struct stat file;

	return !fstat(fd, &file) && S_ISREG(file.st_mode);
}

static bool is_socket(int fd)
{
	struct stat file;

	return !fstat(fd, &file) && S_ISSOCK(file.st_mode);
}

static bool try_read(struct task *task)
{
	const int fd = task->order.fd;
	const int own = has_offset(fd) ? fd : twin_of(fd);
	ssize_t got;

	if (in_background(fd)) {
		finish(task, GHOST_BACKGROUND);
		return true;
	}
	if (is_socket(fd)) {
		got = recv(fd, task->data, task->order.value, MSG_DONTWAIT);
	} else if (own == fd && !has_offset(fd) && !is_ready(fd, POLLIN)) {
		got = -1;
		errno = EAGAIN;
	} else {
		got = read(own, task->data, task->order.value);
	}
	if (got < 0 && (errno == EAGAIN || errno == EINTR) && !(task->order.flags & GHOST_NONBLOCK))
		return false;
	finish(task, got < 0 ? -errno : got);
	return true;
}

static bool try_write(struct task *task)
{
	const int fd = task->order.fd;
	const bool sends = is_socket(fd);
	const int own = has_offset(fd) ? fd : twin_of(fd);

	if (task->order.flags & GHOST_SETS && stops_writers(fd)) {
		finish(task, GHOST_BACKGROUND);
		return true;
	}
	do {
		ssize_t written = -1;

		const unsigned char *data = task->data + task->written;
		const size_t length = task->length - task->written;

		errno = EAGAIN;
		if (sends)
			written = send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
		else if (own != fd || has_offset(fd) || is_ready(fd, POLLOUT))
			written = write(own, data, length);
		if (written < 0) {
			if (errno != EAGAIN && errno != EINTR)
				break;
			if (task->order.flags & GHOST_NONBLOCK)
				break;
			return false;
		}
		task->written += (size_t)written;
	} while (task->written < task->length);
	finish(task, task->written || !task->length ? (int64_t)task->written : -errno);
	return true;
}

static bool has_messages(const struct task *task)
{
	return task->order.flags & GHOST_MESSAGES;
}

static bool try_receive(struct task *task)
{
	struct cut *cut = cut_of(task->order.fd);
	size_t size = task->order.value;
	ssize_t got = 1;

	if (!cut) {
		finish(task, -ENOMEM);
		return true;
	}
	/* The rest of a message comes alone: then who asks has it whole. */
	if (!length_of(&cut->in))
		while (got > 0 && length_of(&cut->in) < size)
			got = receive_message(&cut->in, task->order.fd);
	if (length_of(&cut->in)) {
		if (length_of(&cut->in) < size)
			size = length_of(&cut->in);
		memcpy(task->data, begin_of(&cut->in), size);
		consume(&cut->in, size);
		got = (ssize_t)size;
	} else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
		return false;
	}
	finish(task, got < 0 ? -errno : got);
	return true;
}

/* What it has got of a message that is not sent then, it is given again from the beginning. */
static bool try_send(struct task *task)
{
	struct cut *cut = cut_of(task->order.fd);
	size_t size;

	if (cut && !task->taken) {
		if (task->order.value)
			clear(&cut->out);
		task->before = length_of(&cut->out);
		task->taken = append(&cut->out, task->data, task->length);
	}
	if (!cut || !task->taken) {
		finish(task, -ENOMEM);
		return true;
	}
	while ((size = find_message(&cut->out))) {
		const ssize_t sent = send_message(&cut->out, task->order.fd);

		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			return false;
		if (sent < 0) {
			finish(task, -errno);
			clear(&cut->out);
			return true;
		}
		task->written += size - (size < task->before ? size : task->before);
		task->before -= size < task->before ? size : task->before;
	}
	finish(task, (int64_t)task->length);
	return true;
}

static bool do_ioctl(struct task *task)
{
	const struct ghost_order *order = &task->order;
	int result;

	if (order->flags & GHOST_SETS && in_background(order->fd)) {
		finish(task, GHOST_BACKGROUND);
		return true;
	}
	if (order->kind == GHOST_IOCTL_VALUE)
		result = ioctl(order->fd, order->value, (unsigned long)order->size);
	else
		result = ioctl(order->fd, order->value, task->data);
	finish(task, result < 0 ? -errno : result);
	return true;
}

static bool open_terminal(struct task *task)
{
	const int low = open("/dev/tty", O_RDWR | O_CLOEXEC);
	int fd = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, OURS);

	finish(task, fd < 0 ? -errno : fd);
	if (low >= 0)
		close(low);
	return true;
}

static bool do_shutdown(struct task *task)
{
	finish(task, shutdown(task->order.fd, (int)task->order.value) ? -errno : 0);
	return true;
}

static bool try_watch(struct task *task)
{
	struct pollfd poller = { .fd = task->order.fd, .events = (short)task->order.value };

	if (poll(&poller, 1, 0) <= 0 && !(task->order.flags & GHOST_NONBLOCK))
		return false;
	finish(task, poller.revents);
	return true;
}

static bool try_task(struct task *task)
{
	switch (task->order.kind) {
	case GHOST_READ:
		return has_messages(task) ? try_receive(task) : try_read(task);
	case GHOST_WRITE:
		return has_messages(task) ? try_send(task) : try_write(task);
	case GHOST_IOCTL:
	case GHOST_IOCTL_VALUE:
		return do_ioctl(task);
	case GHOST_TERMINAL:
		return open_terminal(task);
	case GHOST_SHUTDOWN:
		return do_shutdown(task);
	default:
		return try_watch(task);
	}
}

static struct task **find_task(uint64_t id)
{
	struct task **place = &tasks;

	while (*place && (*place)->order.id != id)
		place = &(*place)->next;
	return place;
}

static void begin(const struct ghost_order *order, const unsigned char *data, size_t length)
{
	struct task **place = find_task(order->id), *task = *place;
	size_t room = length;

	/* The daemon that asked for it first has died. */
	if (task) {
		if (task->done)
			answer(task);
		return;
	}
	if (order->kind == GHOST_READ)
		room = order->value;
	else if (order->kind == GHOST_IOCTL)
		room = MAX_IOCTL;
	if (room > LOCAL_MAX_FRAME - sizeof(struct ghost_report) || length > room ||
	    (order->kind == GHOST_IOCTL && order->size > room)) {
		report(GHOST_RESULT, order->id, -EINVAL, NULL, 0);
		return;
	}
	task = calloc(1, sizeof(*task) + room);
	if (!task) {
		report(GHOST_RESULT, order->id, -ENOMEM, NULL, 0);
		return;
	}
	task->order = *order;
	task->length = length;
	memcpy(task->data, data, length);
	*place = task;
	(void)try_task(task);
}

static void cancel(uint64_t id)
{
	struct task *task = *find_task(id);

	if (task && !task->done)
		finish(task, task->written ? (int64_t)task->written : -EINTR);
}

static void forget(uint64_t id)
{
	struct task **place = find_task(id), *task = *place;

	if (task) {
		*place = task->next;
		free(task);
	}
}

static void close_for_body(int fd)
{
	for (struct task *task = tasks; task; task = task->next)
		if (task->order.fd == fd && !task->done)
			finish(task, -EBADF);
	close_both(fd);
}

/* -- the body's state is ours ----------------------------------------------------------------- */

/* With all signals blocked and their actions the default. */
static void suffer(int number)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, number);
	(void)kill(getpid(), number);
	(void)sigprocmask(SIG_UNBLOCK, &set, NULL);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
}

static void end_as(int status)
{
	const struct rlimit none = { 0 };

	if (!WIFSIGNALED(status))
		_exit(WEXITSTATUS(status));
	/* Memory to look at is where the body was. */
	(void)setrlimit(RLIMIT_CORE, &none);
	suffer(WTERMSIG(status));
	_exit(128 + WTERMSIG(status));
}

static void take_state(const struct ghost_order *order)
{
	const int status = (int)order->value;
	pid_t keeper;

	if (WIFSTOPPED(status)) {
		suffer(WSTOPSIG(status));
	} else if (WIFEXITED(status) || WIFSIGNALED(status)) {
		/* What the body has left behind on its node goes on using our descriptors: we leave
		 * somebody for them. */
		keeper = order->size ? fork() : -1;
		if (keeper > 0)
			report(GHOST_KEEPER, 0, keeper, NULL, 0);
		if (keeper)
			end_as(status);
		hello.keeps = 1;
		(void)prctl(PR_SET_PDEATHSIG, 0);
	}
}

/* -- signals ---------------------------------------------------------------------------------- */

static void tell_of_child(pid_t pid, int status)
{
	report(GHOST_CHILD, (uint64_t)pid, status, NULL, 0);
}

static void take_signals(void)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_code == SI_QUEUE && !info.ssi_uid && info.ssi_int == GHOST_OWN_SIGNAL)
			continue;
		if (info.ssi_signo == DEATH_NOTICE && getppid() != parent) {
			parent = getppid();
			orphaned = true;
			report(GHOST_ORPHAN, 0, 0, NULL, 0);
			continue;
		}
		if (info.ssi_signo == SIGCHLD && info.ssi_code > 0)
			look_at_children(tell_of_child);
		else
			report(GHOST_SIGNAL, 0, 0, &info, sizeof(info));
	}
}

/* All are blocked, with the default action: what we would ignore comes to us as well. */
static void take_over_signals(void)
{
	uint64_t all = ~(uint64_t)0;

	(void)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &all, &hello.blocked, sizeof(all));
	for (int number = 1; number < NSIG; number++) {
		const uint64_t fallback[4] = { 0 };
		uint64_t before[4] = { 0 };

		(void)syscall(__NR_rt_sigaction, number, fallback, before, sizeof(all));
		if (before[0] == (uintptr_t)SIG_IGN)
			hello.ignored |= (uint64_t)1 << (number - 1);
	}
}

static void give_back_signals(void)
{
	for (int number = 1; number < NSIG; number++) {
		const uint64_t ignore[4] = { (uintptr_t)SIG_IGN };

		if (hello.ignored >> (number - 1) & 1)
			(void)syscall(__NR_rt_sigaction, number, ignore, NULL, sizeof(uint64_t));
	}
	(void)prctl(PR_SET_PDEATHSIG, (unsigned long)hello.death_signal);
	(void)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &hello.blocked, NULL, sizeof(uint64_t));
}

/* -- the daemon ------------------------------------------------------------------------------- */

static int explain(int error)
{
	switch (error) {
	case ENOSYS:
		dprintf(STDERR_FILENO, "%s: this is no node of a cluster: " LOCAL_FOLDER " is missing\n", name);
		return 1;
	case E2BIG:
		dprintf(STDERR_FILENO, "%s: arguments and environment have over %d bytes\n", name,
			LOCAL_MAX_REQUEST);
		return NOT_EXECUTABLE;
	case ETIMEDOUT:
		dprintf(STDERR_FILENO, "%s: the node daemon does not answer\n", name);
		return UNAVAILABLE;
	default:
		dprintf(STDERR_FILENO, "%s: the node daemon: %s\n", name, strerror(error));
		return UNAVAILABLE;
	}
}

/* Asks, and asks the next daemon the same. Its first frame says that it has understood. */
static int connect_daemon(void)
{
	const struct local_patience patience = local_patience_begin();
	int fd = local_open(request, request_size, &frame, &patience);

	if (fd < 0)
		return -1;
	daemon_fd = fcntl(fd, F_DUPFD_CLOEXEC, OURS);
	if (daemon_fd < 0)
		daemon_fd = fd;
	else
		close(fd);
	report(GHOST_HELLO, 0, 0, &hello, sizeof(hello));
	look_at_children(tell_of_child);
	/* The daemon before this one may have been killed before it heard. */
	if (orphaned)
		report(GHOST_ORPHAN, 0, 0, NULL, 0);
	return 0;
}

static void be_it(char **words)
{
	give_back_signals();
	execvp(words[0], words);
	dprintf(STDERR_FILENO, "%s: %s: %s\n", name, words[0], strerror(errno));
	_exit(errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}

/* Takes a number and the comma behind it from a list; -1 behind the last. */
static int take_number(const char **list)
{
	char *end;
	const long number = strtol(*list, &end, 10);

	if (end == *list)
		return -1;
	*list = *end == ',' ? end + 1 : end;
	return (int)number;
}

/* Who stays for those that use our descriptors on other nodes: nobody's child, with what is listed. */
static void keep(const char *list)
{
	bool wanted[OURS] = { false };
	int fd;

	while ((fd = take_number(&list)) >= 0)
		if (fd < OURS)
			wanted[fd] = true;
	for (fd = 0; fd < OURS; fd++)
		if (!wanted[fd])
			close_for_body(fd);
	hello.keeps = 1;
	/* What is done to its group or session, as a kill or a move, is not meant for it. */
	(void)setsid();
	(void)prctl(PR_SET_PDEATHSIG, 0);
	report(GHOST_KEEPER, 0, getpid(), NULL, 0);
}

/* The daemon has taken duplicates of the descriptors. `words` is the move, and what stays here. */
static void come_home(const unsigned char *words, size_t length, bool keeps)
{
	char program[] = HOMECOMING, text[LOCAL_MAX_FRAME + 1], *arguments[] = { program, text, NULL };

	memcpy(text, words, length);
	text[length] = 0;
	if (keeps) {
		const pid_t between = fork();

		if (between == 0 && fork())
			_exit(0);
		if (between == 0) {
			keep(text + strlen(text) + 1);
			return;
		}
		(void)waitpid(between, NULL, 0);
	}
	execv(program, arguments);
	(void)kill(getpid(), SIGKILL);
}

static void obey(char **argv, int argc)
{
	struct ghost_order order;
	const unsigned char *data = frame.data + sizeof(order);

	if (frame.length < sizeof(order))
		return;
	memcpy(&order, frame.data, sizeof(order));
	switch (order.kind) {
	case GHOST_CANCEL:
		cancel(order.id);
		break;
	case GHOST_DONE:
		forget(order.id);
		break;
	case GHOST_CLOSE:
		close_for_body(order.fd);
		break;
	case GHOST_STATE:
		take_state(&order);
		break;
	case GHOST_SEEK:
		(void)lseek(order.fd, (off_t)order.id, SEEK_SET);
		break;
	case GHOST_REAP:
		if (!reap_child((pid_t)order.id))
			report(GHOST_ALONE, 0, 0, NULL, 0);
		break;
	case GHOST_STARTED:
		break;
	case GHOST_HOME:
		come_home(data, frame.length - sizeof(order), order.size);
		break;
	case GHOST_HERE:
		if (order.value < (uint32_t)argc)
			be_it(argv + order.value);
		break;
	default:
		begin(&order, data, frame.length - sizeof(order));
	}
}

/* Takes one frame; false if the daemon is gone. */
static bool take_frame(char **argv, int argc)
{
	switch (frame.kind) {
	case LOCAL_STDOUT:
	case LOCAL_STDERR:
		(void)!write(frame.kind == LOCAL_STDERR ? STDERR_FILENO : STDOUT_FILENO, frame.data,
			     frame.length);
		return true;
	case LOCAL_END:
		_exit(frame.length ? frame.data[0] : UNAVAILABLE);
	case LOCAL_ORDER:
		obey(argv, argc);
		return true;
	case LOCAL_ACCEPTED:
	case LOCAL_CREDIT:
	default:
		return true;
	}
}

static short events_of(const struct task *task)
{
	switch (task->order.kind) {
	case GHOST_READ:
		return has_messages(task) ? POLLIN | POLLMSG : POLLIN;
	case GHOST_WRITE:
		return POLLOUT;
	default:
		return (short)task->order.value;
	}
}

/* Waits for whatever is to do next, and does it. False if the daemon is gone. */
static bool step(char **argv, int argc)
{
	struct pollfd pollers[2 + MAX_POLLED] = {
		{ .fd = daemon_fd, .events = POLLIN },
		{ .fd = signals, .events = POLLIN },
	};
	struct task *waiting[MAX_POLLED];
	nfds_t count = 0;

	for (struct task *task = tasks; task && count < MAX_POLLED; task = task->next) {
		if (task->done)
			continue;
		waiting[count] = task;
		pollers[2 + count++] = (struct pollfd){ .fd = task->order.fd, .events = events_of(task) };
	}
	if (poll(pollers, 2 + count, -1) < 0)
		return true;
	if (pollers[1].revents)
		take_signals();
	for (nfds_t i = 0; i < count; i++)
		if (pollers[2 + i].revents)
			(void)try_task(waiting[i]);
	if (!pollers[0].revents)
		return true;
	if (local_receive(daemon_fd, &frame))
		return false;
	return take_frame(argv, argc);
}

static void watch_parent(void)
{
	int before = 0;

	(void)prctl(PR_GET_PDEATHSIG, &before);
	hello.death_signal = (uint32_t)before;
	parent = getppid();
	(void)prctl(PR_SET_PDEATHSIG, (unsigned long)DEATH_NOTICE);
}

/*
 * A process that has become its own ghost still has more of itself than a ghost: descriptors, alarms,
 * and signals that have gone along with it already. `words` say which it keeps, and which signals it had.
 */
static void leave_rest(const char *words)
{
	const struct itimerval none = { 0 };
	const struct timespec now = { 0 };
	unsigned int first = 0;
	int number;

	for (; (number = take_number(&words)) >= 0; first = (unsigned int)number + 1)
		if ((unsigned int)number > first)
			(void)close_range(first, (unsigned int)number - 1, 0);
	(void)close_range(first, UINT_MAX, 0);
	for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++)
		(void)setitimer((enum __itimer_which)which, &none, NULL);
	if (*words == ';')
		words++;
	while ((number = take_number(&words)) > 0) {
		const uint64_t set = (uint64_t)1 << (number - 1);

		(void)syscall(__NR_rt_sigtimedwait, &set, NULL, &now, sizeof(set));
	}
}

int main(int argc, char **argv)
{
	const char *kept = getenv("SSI_KEPT");
	mode_t mask = umask(0);
	char *cwd = getcwd(NULL, 0);
	const char *slash = strrchr(argv[0], '/');
	sigset_t all;
	int low;

	(void)umask(mask);
	name = slash ? slash + 1 : argv[0];
	if (kept)
		leave_rest(kept);
	take_over_signals();
	watch_parent();
	sigfillset(&all);
	low = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
	signals = fcntl(low, F_DUPFD_CLOEXEC, OURS);
	close(low);
	request = local_request(argv, environ, cwd ? cwd : "", mask, &request_size);
	if (!request || connect_daemon())
		return explain(errno);
	for (;;) {
		if (step(argv, argc))
			continue;
		close(daemon_fd);
		/* The body lives, so there is a daemon to come. */
		while (connect_daemon())
			if (errno != ETIMEDOUT)
				return explain(errno);
	}
}
