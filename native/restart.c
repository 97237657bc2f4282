/*
 * restart: has a process that was saved go on, as a child of this one, and ends as it does.
 *
 * Set-user-ID root for one call: to make a child with a PID of the node daemon's choice, which becomes
 * homecoming, which asks the daemon what to be. The file is opened with the rights of who calls, and
 * what is in it the daemon judges.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "local.h"
#include "saved.h"

#define HOMECOMING "/usr/lib/ssi/homecoming"

enum { FAILED = 1, UNAVAILABLE = 69, NOT_EXECUTABLE = 126, CHUNK = 32 * 1024, UNKNOWN = -1 };

static const char NAME[] = "restart";

static struct local_frame frame;
static int source = -1, connection = -1;
static size_t credit = LOCAL_WINDOW;
static pid_t child;

static int complain(const char *what, const char *why)
{
	(void)dprintf(STDERR_FILENO, "%s: %s%s%s\n", NAME, what, why ? ": " : "", why ? why : "");
	return FAILED;
}

/* -- before it runs --------------------------------------------------------------------------- */

/* Sends what there is credit for; the daemon says itself why it wants no more. */
static void send_file(void)
{
	static char data[CHUNK];

	while (source >= 0 && credit) {
		const ssize_t got = read(source, data, credit < CHUNK ? credit : CHUNK);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			close(source);
			source = -1;
			(void)local_send_frame(connection, LOCAL_END_OF_STDIN, NULL, 0);
		} else if (local_send_frame(connection, LOCAL_STDIN, data, (size_t)got)) {
			close(source);
			source = -1;
		} else {
			credit -= (size_t)got;
		}
	}
}

static int open_file(const char *path)
{
	struct stat file;

	source = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (source < 0 || fstat(source, &file))
		return complain(path, strerror(errno));
	if (!S_ISREG(file.st_mode))
		return complain(path, "is no file");
	return UNKNOWN;
}

static void become(const char *move)
{
	char *const arguments[] = { (char *)(uintptr_t)HOMECOMING, (char *)(uintptr_t)move, NULL }; // NOLINT
	char *const none[] = { NULL };

	(void)execve(HOMECOMING, arguments, none);
	_exit(NOT_EXECUTABLE);
}

/* Makes the child; returns 0 or an errno. Nothing of root's is left to us after it. */
static int make_child(pid_t pid, const char *move)
{
	const uid_t user = getuid();
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&pid, .set_tid_size = 1,
	};
	long made;
	int failure;

	if (setresuid((uid_t)-1, 0, (uid_t)-1))
		return EPERM;
	made = syscall(SYS_clone3, &args, sizeof(args));
	failure = errno;
	if (made == 0)
		become(move);
	if (setresuid(user, user, user))
		_exit(FAILED);
	if (made < 0)
		return failure;
	child = (pid_t)made;
	return 0;
}

/* Returns the status with which we end, UNKNOWN if we do not. */
static int obey(void)
{
	char *words = (char *)frame.data, *end;

	if (!strncmp(words, SAVED_OPEN, strlen(SAVED_OPEN)))
		return open_file(words + strlen(SAVED_OPEN));
	if (!strncmp(words, SAVED_START, strlen(SAVED_START)) && !child) {
		const long pid = strtol(words + strlen(SAVED_START), &end, 10);

		if (*end == ' ')
			(void)saved_report(connection, make_child((pid_t)pid, end + 1));
	}
	return UNKNOWN;
}

/* Takes one frame; returns the status with which it ends, UNKNOWN before that. */
static int take_frame(void)
{
	switch (frame.kind) {
	case LOCAL_STDOUT:
		return write(STDOUT_FILENO, frame.data, frame.length) < 0 ? FAILED : UNKNOWN;
	case LOCAL_STDERR:
		(void)!write(STDERR_FILENO, frame.data, frame.length);
		return UNKNOWN;
	case LOCAL_CREDIT:
		credit += local_number(&frame);
		return UNKNOWN;
	case LOCAL_ORDER:
		return obey();
	case LOCAL_END:
		return frame.length ? frame.data[0] : UNAVAILABLE;
	case LOCAL_ACCEPTED:
	default:
		return UNKNOWN;
	}
}

/* Returns 0 once it runs, or with what we end. */
static int follow(void)
{
	for (;;) {
		const int status = take_frame();

		if (status != UNKNOWN)
			return status;
		send_file();
		if (local_receive(connection, &frame)) {
			/* Whether it runs or is killed, who was asked last knows: we see how it ends. */
			if (child)
				return 0;
			(void)complain("the node daemon has ended", NULL);
			return UNAVAILABLE;
		}
	}
}

/* -- while it runs ---------------------------------------------------------------------------- */

/* Those that are sent to us are meant for it. */
static const int RELAYED[] = { SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH };
static const int STOPS[] = { SIGTSTP, SIGTTIN, SIGTTOU };

static void block(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGCHLD);
	sigaddset(set, SIGCONT);
	for (size_t i = 0; i < sizeof(RELAYED) / sizeof(RELAYED[0]); i++)
		sigaddset(set, RELAYED[i]);
	(void)sigprocmask(SIG_BLOCK, set, NULL);
	/* They are the child's, which is in our group; we stop when it has. */
	for (size_t i = 0; i < sizeof(STOPS) / sizeof(STOPS[0]); i++) {
		sigset_t one;

		sigemptyset(&one);
		sigaddset(&one, STOPS[i]);
		(void)sigprocmask(SIG_BLOCK, &one, NULL);
	}
}

/* Stops as the child has stopped; returns when we are continued. */
static void stop(int number)
{
	sigset_t one;

	if (number == SIGSTOP) {
		(void)raise(number);
		return;
	}
	sigemptyset(&one);
	sigaddset(&one, number);
	(void)raise(number);
	(void)sigprocmask(SIG_UNBLOCK, &one, NULL);
	(void)sigprocmask(SIG_BLOCK, &one, NULL);
}

static void end(int status)
{
	const int number = WTERMSIG(status);
	sigset_t one;

	if (WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	/* The core, if there is to be one, is the child's. */
	(void)setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	sigemptyset(&one);
	sigaddset(&one, number);
	(void)signal(number, SIG_DFL);
	(void)raise(number);
	(void)sigprocmask(SIG_UNBLOCK, &one, NULL);
	_exit(128 + number);
}

/* Hears how the child fares; returns whether it has been continued. */
static bool look(void)
{
	bool continued = false;
	int status;

	while (waitpid(child, &status, WNOHANG | WUNTRACED | WCONTINUED) == child) {
		continued = WIFCONTINUED(status);
		if (WIFSTOPPED(status))
			stop(WSTOPSIG(status));
		else if (!continued)
			end(status);
	}
	return continued;
}

static _Noreturn void accompany(void)
{
	sigset_t set;
	siginfo_t info;

	block(&set);
	for (;;) {
		const bool continued = look();
		const int number = sigwaitinfo(&set, &info);

		if (number < 0 || number == SIGCHLD)
			continue;
		/* What comes from the terminal is for the whole group. */
		if (info.si_code == SI_KERNEL || (number == SIGCONT && (continued || look())))
			continue;
		(void)kill(child, number);
	}
}

int main(int argc, char **argv)
{
	const struct local_patience patience = local_patience_begin();
	char *const none[] = { NULL };
	char *request;
	size_t size;
	int status;

	/* Whoever calls may have it ignored, and we would not hear of our child. */
	(void)signal(SIGCHLD, SIG_DFL);
	/* Until we need it. */
	if (setresuid((uid_t)-1, getuid(), (uid_t)-1) || argc < 1)
		return FAILED;
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return FAILED;
	request = local_request(argv, none, "", 0, &size);
	if (!request)
		return complain(strerror(errno), NULL);
	connection = local_open(request, size, &frame, &patience);
	if (connection < 0) {
		(void)complain(errno == ENOSYS ? "this is no node of a cluster" : strerror(errno), NULL);
		return errno == ENOSYS ? FAILED : UNAVAILABLE;
	}
	status = follow();
	close(connection);
	if (!child || status) {
		if (child)
			(void)kill(child, SIGKILL);
		return status;
	}
	accompany();
}
