/*
 * Preloaded into CRIU: what a node wants otherwise, without another CRIU.
 *
 * - The process that is restored is CRIU itself. CRIU forks the root task with the PID that its image
 *   has. When that is CRIU's own PID, the roles change: this process becomes the task, and a child goes
 *   on as CRIU. So whoever has a place in the tree (a parent, a group, a session) keeps it: a
 *   stand-in's child for a process that comes, a ghost for one that comes home. If it cannot be
 *   restored, it is that ghost again.
 * - Children stay where they are: CRIU sees none. Where the process comes to, a placeholder is born
 *   for each that is elsewhere, which is its ghost (native/onnode.c).
 * - Its locks are waited for by others, who share its descriptors: it is still to be restored, and
 *   held, before they are let go of where it comes from. The daemon waits until all are there.
 * - /proc is the kernel's own, not the cluster's, and so are /dev and the terminals in /dev/pts. Over
 *   /dev of visitors is mounted what leads to it, or to the one of another node: a process that has
 *   anything of another node's open there does not come to CRIU.
 * - What CRIU knows of this kernel is kept where it can be written.
 * - Before it waits for its page server's word, all that it has said is sent.
 * - Of pages that others send (kept.h) it hears nothing.
 * - It is loaded as libraries that CRIU has no use for here (src/ssi/host/build/compiled.py), as they and
 *   theirs would take most of the time of its start.
 * - Since Linux 6.16 some options of sockets are refused where CRIU expects "off".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "asking.h"
#include "pages.h"
#include "words.h"

#define REAL_PROC "/run/ssi/proc"
#define KNOWN "/run/criu.kdat"
#define KNOWN_HERE "/run/ssi/criu.kdat"
#define CHILDREN "/children"
#define TERMINALS "/dev/pts"
#define MOUNTS "mountinfo"

/* Beside the images, a line for each child elsewhere: PID, group, session, user, his group and node. */
#define RELATIVES "/run/ssi/proc/self/fd/3/relatives"
#define GHOST_PROGRAM "/usr/bin/onnode"

/* The part of a terminal's number that is its node's (src/ssi/node/devfs/places.py). */
enum { TERMINAL_MASK = (1 << 12) - 1 };
enum { LONGEST = 4200, ARGUMENTS = 6, DECIMALS = 16, DECIMAL = 10 };
/* For how long a process that fails may take to be a ghost. */
enum { BACK_STEPS = 250, BACK_STEP_NS = 20000000 };
enum { MAPPINGS = 4096, LARGE = 1 << 20 };

int open64(const char *path, int flags, ...);
int openat64(int fd, const char *path, int flags, ...);

/* The only thing of those libraries that CRIU looks for before it calls what it has no use for. */
void (*gnutls_free)(void *);

/* A function of the next library by this name. Of a type of its own: ISO C knows no other way. */
static void find_next(const char *name, void *place)
{
	void *found = dlsym(RTLD_NEXT, name);

	memcpy(place, &found, sizeof(found));
}

/* -- files ------------------------------------------------------------------------------------ */

static const char *choose_path(const char *path, char *room)
{
	const size_t length = strlen(path), end = sizeof(CHILDREN) - 1;

	if (!strcmp(path, KNOWN))
		return KNOWN_HERE;
	if (length >= end && !strcmp(path + length - end, CHILDREN))
		return "/dev/null";
	if (strncmp(path, "/proc", 5) || (path[5] && path[5] != '/') ||
	    length + sizeof(REAL_PROC) > LONGEST)
		return path;
	(void)snprintf(room, LONGEST, REAL_PROC "%s", path + 5);
	return room;
}

/* Returns a copy of a list of mounts without that one: it takes no files below a mount. */
static int hide_devices(int list)
{
	const int copy = memfd_create(MOUNTS, MFD_CLOEXEC);
	FILE *file = fdopen(list, "r");
	char *line = NULL;
	size_t size = 0;

	while (file && copy >= 0 && getline(&line, &size, file) > 0)
		if (!strstr(line, " /dev ") || !strstr(line, " - fuse devfs "))
			(void)dprintf(copy, "%s", line);
	free(line);
	if (file)
		(void)fclose(file);
	(void)lseek(copy, 0, SEEK_SET);
	return copy;
}

static int open_chosen(int fd, const char *path, int flags, mode_t mode)
{
	static int (*next)(int, const char *, int, ...);
	const char *slash = strrchr(path, '/');
	char room[LONGEST];
	int opened;

	if (!next)
		find_next("openat", &next);
	opened = next(fd, choose_path(path, room), flags, mode);
	return opened < 0 || strcmp(slash ? slash + 1 : path, MOUNTS) ? opened : hide_devices(opened);
}

int openat64(int fd, const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list rest;

	va_start(rest, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(rest, mode_t);
	va_end(rest);
	return open_chosen(fd, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list rest;

	va_start(rest, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(rest, mode_t);
	va_end(rest);
	return open_chosen(AT_FDCWD, path, flags, mode);
}

/* The folder has terminals of other nodes as well, and another file system; what is in it is the kernel's. */
static const char *choose_terminals(const char *path)
{
	return strcmp(path, TERMINALS) ? path : TERMINALS "/ptmx";
}

int statfs64(const char *path, struct statfs64 *found)
{
	static int (*next)(const char *, struct statfs64 *);

	if (!next)
		find_next("statfs64", &next);
	return next(choose_terminals(path), found);
}

int stat64(const char *path, struct stat64 *found)
{
	static int (*next)(const char *, struct stat64 *);

	if (!next)
		find_next("stat64", &next);
	return next(choose_terminals(path), found);
}

/* A terminal without the node's part of its number: CRIU takes none above 1000, and none that it would open. */
static ssize_t count_from_zero(char *name, ssize_t length)
{
	const ssize_t start = sizeof(TERMINALS "/") - 1;
	char digits[DECIMALS] = "", *end;
	unsigned long number;

	if (length <= start || length - start >= DECIMALS || memcmp(name, TERMINALS "/", (size_t)start))
		return length;
	memcpy(digits, name + start, (size_t)(length - start));
	number = strtoul(digits, &end, 10);
	if (*end)
		return length;
	(void)snprintf(digits, sizeof(digits), "%lu", number & TERMINAL_MASK);
	memcpy(name + start, digits, strlen(digits));
	return start + (ssize_t)strlen(digits);
}

ssize_t readlinkat(int folder, const char *path, char *name, size_t size)
{
	static ssize_t (*next)(int, const char *, char *, size_t);

	if (!next)
		find_next("readlinkat", &next);
	return count_from_zero(name, next(folder, path, name, size));
}

ssize_t readlink(const char *path, char *name, size_t size)
{
	return readlinkat(AT_FDCWD, path, name, size);
}

static int next_fcntl(int fd, int command, void *argument)
{
	static int (*next)(int, int, ...);

	if (!next)
		find_next("fcntl64", &next);
	return next(fd, command, argument);
}

/* -- who is restored -------------------------------------------------------------------------- */

static bool is_criu;

/* Until the roles have changed we are the task already, and so is what does not go on as CRIU: its
 * children are none of CRIU's. */
static bool is_task(void)
{
	return !is_criu && getenv(MOVE_PLACE);
}

int sigprocmask(int how, const sigset_t *set, sigset_t *before)
{
	static int (*next)(int, const sigset_t *, sigset_t *);
	sigset_t changed;

	if (!next)
		find_next("sigprocmask", &next);
	if (!set || !is_task())
		return next(how, set, before);
	changed = *set;
	if (how == SIG_UNBLOCK)
		sigdelset(&changed, SIGCHLD);
	else
		sigaddset(&changed, SIGCHLD);
	return next(how, &changed, before);
}

pid_t waitpid(pid_t pid, int *status, int options)
{
	static pid_t (*next)(pid_t, int *, int);

	if (!next)
		find_next("waitpid", &next);
	if (pid == -1 && is_task()) {
		errno = ECHILD;
		return -1;
	}
	return next(pid, status, options);
}

static pid_t next_setsid(void)
{
	static pid_t (*next)(void);

	if (!next)
		find_next("setsid", &next);
	return next();
}

/* -- its children ----------------------------------------------------------------------------- */

static void __attribute__((noreturn)) be_placeholder(pid_t group, pid_t session, uid_t user,
							     gid_t users, int node)
{
	char name[] = "onnode", word[] = "its-command", number[DECIMALS];
	char *words[] = { name, number, word, NULL }, *none[] = { NULL };

	(void)snprintf(number, sizeof(number), "%d", node);
	/* A group may be one of which nobody else is here: then it stays in its parent's. */
	if (session == getpid())
		(void)next_setsid();
	else
		(void)setpgid(0, group);
	if (close_range(0, UINT_MAX, 0) || open64("/dev/null", O_RDWR) != STDIN_FILENO ||
	    dup(STDIN_FILENO) != STDOUT_FILENO || dup(STDIN_FILENO) != STDERR_FILENO ||
	    chdir("/") || setgroups(0, NULL) || setresgid(users, users, users) ||
	    setresuid(user, user, user))
		_exit(EXIT_FAILURE);
	(void)execve(GHOST_PROGRAM, words, none);
	_exit(EXIT_FAILURE);
}

/* Children of the task, who is going to wait for them. */
static bool make_placeholders(void)
{
	FILE *list = fopen(RELATIVES, "re");
	int pid, group, session, node;
	unsigned int user, users;
	bool made = true;

	while (list && made && fscanf(list, "%d %d %d %u %u %d", &pid, &group, &session, &user, &users,
				      &node) == 6) {
		struct clone_args args = {
			.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&pid, .set_tid_size = 1,
		};
		const long child = syscall(SYS_clone3, &args, sizeof(args), 0, 0, 0, 0);

		if (child == 0)
			be_placeholder(group, session, user, users, node);
		made = child > 0;
	}
	if (list)
		(void)fclose(list);
	return made;
}

/* Of those that have ended before it is told anew: to what CRIU makes of the task it is a failure. */
static void forget_child_signals(void)
{
	const struct timespec now = { 0 };
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	while (sigtimedwait(&child, NULL, &now) > 0)
		continue;
}

static bool tell_daemon(uint32_t question, int32_t number)
{
	static struct answer answer;

	return ask_once(getenv(MOVE_VARIABLE), question, number, &answer) &&
		answer.packet.head.verdict == MOVE_GO_ON;
}

/* The roles have changed, and this is the task. */
static bool is_restored;

/* Returns as a clone that has made a child of our own PID: 0 to ourselves, our PID to CRIU. */
static long change_roles(void)
{
	const pid_t self = getpid();
	int told[2];
	sigset_t child;
	pid_t between;
	int status = 0;
	char byte = 0;

	if (!make_placeholders() || pipe2(told, O_CLOEXEC))
		return -1;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	(void)sigprocmask(SIG_BLOCK, &child, NULL);
	/* It does nothing but fork, in our memory: a copy of that takes milliseconds. Its signal is forgotten below. */
	between = vfork(); // NOLINT
	if (between < 0)
		return -1;
	if (between == 0) {
		/* An orphan: it is nobody's child when the task goes on. */
		const pid_t other = fork();

		if (other)
			_exit(other < 0);
		is_criu = true;
		/* In a session of its own: as long as nobody has heard of its end, the process's number would be taken
		 * here, be the process elsewhere by then. */
		(void)next_setsid();
		(void)sigprocmask(SIG_UNBLOCK, &child, NULL);
		/* The task would wait for ever for a CRIU that has been killed. */
		if (!tell_daemon(MOVE_CRIU, 0) || write(told[1], &byte, sizeof(byte)) < 0)
			_exit(1);
		close(told[0]);
		close(told[1]);
		return self;
	}
	close(told[1]);
	while (waitpid(between, &status, __WALL) < 0 && errno == EINTR)
		continue;
	/* Its end, if CRIU is killed before it could say so. */
	if (!status && read(told[0], &byte, sizeof(byte)) != sizeof(byte))
		status = -1;
	close(told[0]);
	if (status) {
		errno = EAGAIN;
		return -1;
	}
	forget_child_signals();
	is_restored = true;
	return 0;
}

/* -- who is not restored ---------------------------------------------------------------------- */

static bool is_place(pid_t pid)
{
	const char *place = getenv(MOVE_PLACE);

	return place && strtol(place, NULL, DECIMAL) == pid;
}

/* Is who homecoming was, again (describe_user). */
static bool take_user(const char *words)
{
	static gid_t groups[NGROUPS_MAX]; // NOLINT
	uintmax_t numbers[2 + 2 * RLIM_NLIMITS];
	size_t count = 0;
	char *end;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++, words = end) {
		numbers[i] = strtoumax(words, &end, DECIMAL);
		if (end == words)
			return false;
	}
	for (; count < NGROUPS_MAX && *words; count++, words = end)
		groups[count] = (gid_t)strtoumax(words, &end, DECIMAL);
	for (int which = 0; which < RLIM_NLIMITS; which++) {
		const struct rlimit limit = { numbers[2 + 2 * which], numbers[3 + 2 * which] };

		(void)setrlimit((__rlimit_resource_t)which, &limit);
	}
	return !setgroups(count, groups) && !setresgid((gid_t)numbers[1], (gid_t)numbers[1], (gid_t)numbers[1]) &&
		!setresuid((uid_t)numbers[0], (uid_t)numbers[0], (uid_t)numbers[0]);
}

/* Has again what the ghost had, which the daemon has duplicates of. */
static bool take_kept(const char *variable)
{
	static struct answer answer;
	const char *next = strchr(variable, '=');

	(void)close_range(0, UINT_MAX, 0);
	while (next && next[1] && next[1] != ';') {
		char *end;
		const int fd = (int)strtol(next + 1, &end, DECIMAL);

		if (!ask_once(getenv(MOVE_VARIABLE), MOVE_KEPT, fd, &answer) || answer.fd < 0)
			return false;
		if (answer.fd == fd ? next_fcntl(fd, F_SETFD, NULL) : dup2(answer.fd, fd) < 0 || close(answer.fd))
			return false;
		next = *end == ',' ? end : NULL;
	}
	return true;
}

/* The process stays where it was, so this is its ghost again; returns if that cannot be. */
static void be_ghost(void)
{
	static struct answer answer;
	const char *user = getenv(MOVE_USER);
	char *words[GHOST_WORDS], **variables;

	if (!user || !ask_once(getenv(MOVE_VARIABLE), MOVE_BACK, 0, &answer) ||
	    answer.packet.head.verdict != MOVE_GHOST)
		return;
	variables = list_words(&answer, words, GHOST_WORDS);
	if (!variables || !variables[0] || !take_kept(variables[0]))
		return;
	/* Otherwise the body would get what CRIU's helpers have caused. */
	forget_child_signals();
	if (!chdir("/") && take_user(user))
		(void)execve(GHOST_PROGRAM, words, variables);
}

/* Who fails in the place of a process is its ghost again, or has ended as one that was killed. */
static void __attribute__((destructor)) end(void)
{
	if (!is_place(getpid()))
		return;
	be_ghost();
	(void)kill(getpid(), SIGKILL);
}

static const int faults[] = { SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL };

static void hear_fault(int number)
{
	end();
	(void)signal(number, SIG_DFL);
	(void)raise(number);
}

/* CRIU that breaks over what it reads has failed like any other. What it restores gets its own handlers from it. */
static void __attribute__((constructor)) begin(void)
{
	sigset_t set;

	if (!is_place(getpid()))
		return;
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++) {
		(void)signal(faults[i], hear_fault);
		sigaddset(&set, faults[i]);
	}
	/* A ghost has all signals blocked. */
	(void)sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* Tells whether a process that fails has become something else, or nothing, soon. */
static bool has_gone_back(pid_t pid)
{
	const struct timespec step = { .tv_nsec = BACK_STEP_NS };
	struct stat own, its;
	char path[LONGEST];

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/exe", pid);
	if (stat(REAL_PROC "/self/exe", &own))
		return false;
	for (int i = 0; i < BACK_STEPS; i++) {
		if (stat(path, &its) || own.st_ino != its.st_ino || own.st_dev != its.st_dev)
			return true;
		(void)nanosleep(&step, NULL);
	}
	return false;
}

/* CRIU kills the task that has just told it of its failure: this one gets the time to be a ghost. */
int kill(pid_t pid, int number)
{
	static int (*next)(pid_t, int);

	if (!next)
		find_next("kill", &next);
	if (is_criu && number == SIGKILL && is_place(pid) && has_gone_back(pid))
		return 0;
	return next(pid, number);
}

static int is_own_place(const struct clone_args *args)
{
	pid_t wanted;

	if (args->set_tid_size != 1)
		return 0;
	memcpy(&wanted, (const void *)(uintptr_t)args->set_tid, sizeof(wanted)); // NOLINT
	return wanted == getpid();
}

long syscall(long number, ...)
{
	static long (*next)(long, ...);
	long arguments[ARGUMENTS];
	va_list rest;

	va_start(rest, number);
	for (int i = 0; i < ARGUMENTS; i++)
		arguments[i] = va_arg(rest, long);
	va_end(rest);
	if (!next)
		find_next("syscall", &next);
	if (number == SYS_clone3 && is_own_place((const struct clone_args *)arguments[0]))
		return change_roles();
	return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
		    arguments[5]);
}

/* One that leads its session already may do so. */
pid_t setsid(void)
{
	return getsid(0) == getpid() ? getpid() : next_setsid();
}

/* -- locks ------------------------------------------------------------------------------------ */

struct lock {
	int fd, operation;
	struct flock range;	/* unless it is one of flock(2) */
	bool ranged;
};

static int next_flock(int fd, int operation)
{
	static int (*next)(int, int);

	if (!next)
		find_next("flock", &next);
	return next(fd, operation);
}

static void __attribute__((noreturn)) take(struct lock *lock)
{
	int result;

	do
		result = lock->ranged ? next_fcntl(lock->fd, lock->operation, &lock->range) :
					next_flock(lock->fd, lock->operation);
	while (result && errno == EINTR);
	_exit(result ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* A lock belongs to the descriptors: whoever shares them takes it for us. An orphan, of whom the task
 * hears nothing. */
static int take_later(struct lock *lock)
{
	pid_t *taker = mmap(NULL, sizeof(*taker), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	pid_t between;
	int status = -1;
	bool told;

	if (taker == MAP_FAILED)
		return -1;
	between = (pid_t)syscall(SYS_clone, CLONE_FILES, NULL, NULL, NULL, 0);
	if (between == 0) {
		const pid_t child = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);

		if (child == 0)
			take(lock);
		*taker = child;
		_exit(child < 0);
	}
	while (between > 0 && waitpid(between, &status, __WALL) < 0 && errno == EINTR)
		continue;
	told = !status && tell_daemon(MOVE_LOCK, *taker);
	if (!told && *taker > 0)
		(void)kill(*taker, SIGKILL);
	(void)munmap(taker, sizeof(*taker));
	return told ? 0 : -1;
}

int flock(int fd, int operation)
{
	struct lock lock = { .fd = fd, .operation = operation };

	return is_restored ? take_later(&lock) : next_flock(fd, operation);
}

int fcntl64(int fd, int command, ...)
{
	struct lock lock = { .fd = fd, .ranged = true };
	void *argument;
	va_list rest;

	va_start(rest, command);
	argument = va_arg(rest, void *);
	va_end(rest);
	if (!is_restored || (command != F_SETLKW && command != F_OFD_SETLK))
		return next_fcntl(fd, command, argument);
	lock.operation = command == F_SETLKW ? F_SETLKW : F_OFD_SETLKW;
	memcpy(&lock.range, argument, sizeof(lock.range));
	return take_later(&lock);
}

/* -- sockets ---------------------------------------------------------------------------------- */

int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	static int (*next)(int, int, int, void *, socklen_t *);
	int result;

	if (!next)
		find_next("getsockopt", &next);
	result = next(fd, level, option, value, size);
	if (result < 0 && errno == EOPNOTSUPP && level == SOL_SOCKET &&
	    (option == SO_PASSCRED || option == SO_PASSSEC)) {
		memset(value, 0, *size);
		return 0;
	}
	return result;
}

/* -- pages ------------------------------------------------------------------------------------ */

/* Those of large mappings, which are not of CRIU's business. */
static struct {
	bool is_known;
	int connection, file, follow;
	pid_t pid;
} apart = { .connection = -1 };

static bool are_apart(void)
{
	const char *words = getenv(MOVE_PAGES);

	if (!apart.is_known && words &&
	    sscanf(words, MOVE_PAGES_WORDS, &apart.connection, &apart.file, &apart.pid, &apart.follow) != 4)
		apart.connection = -1;
	apart.is_known = true;
	return apart.connection >= 0;
}

/* It waits for who asks for the pages that it has found; who serves them is not CRIU (kept.h). Otherwise: it keeps
 * what is less than a frame in a corked connection, for a fifth of a second. */
ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
	static ssize_t (*next)(int, void *, size_t, int);
	const int on = 1;

	if (!next)
		find_next("recv", &next);
	if (are_apart() && apart.follow && fd == apart.connection)
		return 0;
	/* Sends what is queued, corked or not; what is no connection refuses it. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return next(fd, buffer, size, flags);
}

int close(int fd)
{
	static int (*next)(int);

	if (!next)
		find_next("close", &next);
	/* It is wanted later. */
	return are_apart() && fd == apart.connection ? 0 : next(fd);
}

/* As linux/fs.h has it; older headers have not. */
struct page_region {
	uint64_t start, end, categories;
};

struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN_PAGES _IOWR('f', 16, struct pm_scan_arg)

enum { IS_GUARD = 1 << 8 };

/* A mapping that is the process's alone, of no file, and large. */
struct mapping {
	uint64_t start, end;
};

static struct mapping mappings[MAPPINGS];
static size_t mapping_count;

static bool is_locked(void)
{
	char line[LONGEST];
	unsigned long size = 0;
	FILE *status;

	(void)snprintf(line, sizeof(line), REAL_PROC "/%d/status", apart.pid);
	status = fopen(line, "re");
	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmLck: %lu", &size) == 1)
			break;
	if (status)
		(void)fclose(status);
	return size > 0;
}

static void find_mappings(void)
{
	char line[LONGEST], access[DECIMALS], name[DECIMALS];
	struct mapping one;
	unsigned long file;
	FILE *maps;

	/* CRIU puts what is locked in place by itself. */
	if (is_locked())
		return;
	(void)snprintf(line, sizeof(line), REAL_PROC "/%d/maps", apart.pid);
	maps = fopen(line, "re");
	while (maps && mapping_count < MAPPINGS && fgets(line, sizeof(line), maps)) {
		name[0] = 0;
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %15s %*x %*x:%*x %lu %15s", &one.start, &one.end, access, &file,
			   name) < 4)
			continue;
		if (one.end - one.start >= LARGE && access[3] == 'p' && !file &&
		    (!name[0] || !strcmp(name, "[heap]") || !strncmp(name, "[anon:", 6)))
			mappings[mapping_count++] = one;
	}
	if (maps)
		(void)fclose(maps);
}

static bool is_apart(const struct page_region *region)
{
	/* Behind what is guarded are no pages. */
	if (region->categories & IS_GUARD)
		return false;
	for (size_t i = 0; i < mapping_count; i++)
		if (region->start >= mappings[i].start && region->end <= mappings[i].end)
			return true;
	return false;
}

/* Of the pages that the kernel has told of, those apart are written down (src/ssi/node/migration/rewrite.py),
 * and CRIU hears of none of them: it would look at each. Returns how many regions are left, or -1. */
static int hide_pages(struct page_region *regions, int count)
{
	static bool are_known;
	int left = 0;

	if (!are_known)
		find_mappings();
	are_known = true;
	for (int i = 0; i < count; i++) {
		const struct region one = { regions[i].start, (regions[i].end - regions[i].start) / PAGE };

		if (!is_apart(&regions[i]))
			regions[left++] = regions[i];
		else if (write(apart.file, &one, sizeof(one)) != sizeof(one))
			return -1;
	}
	return left;
}

/* Has the kernel say who touches what is missing: he is killed if that is lost. And see hide_pages. */
int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, ...);
	void *argument;
	int result;
	va_list rest;

	va_start(rest, request);
	argument = va_arg(rest, void *);
	va_end(rest);
	if (!next)
		find_next("ioctl", &next);
	if (request == UFFDIO_API && ((struct uffdio_api *)argument)->features)
		((struct uffdio_api *)argument)->features |= UFFD_FEATURE_THREAD_ID;
	result = next(fd, request, argument);
	if (request != SCAN_PAGES || result <= 0 || !are_apart())
		return result;
	return hide_pages((struct page_region *)(uintptr_t)((struct pm_scan_arg *)argument)->vec, result); // NOLINT
}
