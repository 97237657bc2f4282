/*
 * command: what a person calls as `cluster`, `clusternode_num`, `onall`, ...: asks the node daemon.
 *
 * The daemon gets arguments, environment, folder and umask, and answers by the name this is called by.
 * What it writes is written here; its status is ours. Needs no privilege: the daemon knows by the
 * kernel's word who asks. Exits 69 if there is no answer, and 1 where there is no cluster.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>

#include "local.h"

enum {
	UNAVAILABLE = 69,	/* EX_UNAVAILABLE */
	STDIN_CHUNK = 16 * 1024,
	OUTPUT_CHUNK = 4096,	/* PIPE_BUF: poll promises room for so much */
};

/* A query changes nothing: asked twice it is as good as once. RELAY passes on input and signals. */
enum manner { CHANGE = 0, QUERY = 1, RELAY = 2 };

static const struct {
	const char *name;
	enum manner manner;
} MANNERS[] = {
	{ "cluster", QUERY },
	{ "clustername", QUERY },
	{ "clusternode_num", QUERY },
	{ "clusternode_avail", QUERY },
	{ "clusternode_getstate", QUERY },
	{ "runlevel", QUERY },
	{ "where_pid", QUERY },
	{ "fastnode", QUERY },
	{ "onall", RELAY },
};

static const int RELAYED[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };

struct session {
	const char *name;
	enum manner manner;
	int socket;
	int signals;	/* -1 if they are not relayed */
	int stdin_fd;	/* -1 once it has ended */
	size_t credit;
	bool written;	/* a query that has written something cannot begin anew */
};

static struct local_frame frame;

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static enum manner find_manner(const char *name)
{
	for (size_t i = 0; i < sizeof(MANNERS) / sizeof(MANNERS[0]); i++)
		if (!strcmp(MANNERS[i].name, name))
			return MANNERS[i].manner;
	return CHANGE;
}

static int complain(const char *name, const char *what)
{
	dprintf(STDERR_FILENO, "%s: %s\n", name, what);
	return UNAVAILABLE;
}

static int explain(const char *name, int error)
{
	switch (error) {
	case ENOSYS:
		dprintf(STDERR_FILENO, "%s: this is no node of a cluster: " LOCAL_FOLDER " is missing\n", name);
		return 1;
	case EPERM:
		return complain(name, "who listens at " LOCAL_FOLDER "/ssid.sock is not the node daemon");
	case ETIMEDOUT:
		return complain(name, "the node daemon does not answer");
	case E2BIG:
		dprintf(STDERR_FILENO, "%s: arguments and environment have over %d bytes\n", name,
			LOCAL_MAX_REQUEST);
		return 1;
	default:
		return complain(name, strerror(error));
	}
}

static void relay_signal(struct session *session)
{
	struct signalfd_siginfo info;
	uint32_t number;

	if (read(session->signals, &info, sizeof(info)) != sizeof(info))
		return;
	number = htole32(info.ssi_signo);
	/* If the daemon is gone, the next receive says so. */
	(void)local_send_frame(session->socket, LOCAL_SIGNAL, &number, sizeof(number));
}

/* Waits until `fd` takes output; signals go on being relayed. */
static void wait_writable(struct session *session, int fd)
{
	for (;;) {
		struct pollfd pollers[] = {
			{ .fd = fd, .events = POLLOUT },
			{ .fd = session->signals, .events = POLLIN },
		};

		if (poll(pollers, 2, -1) < 0 && errno != EINTR)
			return;
		if (pollers[1].revents)
			relay_signal(session);
		if (pollers[0].revents)
			return;
	}
}

static int write_output(struct session *session, int fd)
{
	const unsigned char *next = frame.data;
	size_t left = frame.length;

	session->written = true;
	while (left) {
		size_t chunk = left;
		ssize_t written;

		if (session->signals >= 0) {
			wait_writable(session, fd);
			if (chunk > OUTPUT_CHUNK)
				chunk = OUTPUT_CHUNK;
		}
		written = write(fd, next, chunk);
		if (written < 0) {
			if (errno == EAGAIN)
				wait_writable(session, fd);
			else if (errno != EINTR)
				return -1;
			continue;
		}
		next += written;
		left -= (size_t)written;
	}
	return 0;
}

static void relay_stdin(struct session *session)
{
	char data[STDIN_CHUNK];
	size_t room = session->credit < sizeof(data) ? session->credit : sizeof(data);
	ssize_t got = read(session->stdin_fd, data, room);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got > 0) {
		session->credit -= (size_t)got;
		(void)local_send_frame(session->socket, LOCAL_STDIN, data, (size_t)got);
	} else {
		session->stdin_fd = -1;
		(void)local_send_frame(session->socket, LOCAL_END_OF_STDIN, NULL, 0);
	}
}

/* Passes on input and signals until the daemon says something. */
static int wait_frame(struct session *session)
{
	for (;;) {
		struct pollfd pollers[] = {
			{ .fd = session->socket, .events = POLLIN },
			{ .fd = session->signals, .events = POLLIN },
			{ .fd = session->credit ? session->stdin_fd : -1, .events = POLLIN },
		};

		if (poll(pollers, 3, -1) < 0 && errno != EINTR)
			return -1;
		if (pollers[1].revents)
			relay_signal(session);
		if (pollers[0].revents)
			return 0;
		if (pollers[2].revents)
			relay_stdin(session);
	}
}

/* Takes one frame; returns the status at the end, -1 before it. */
static int take_frame(struct session *session)
{
	int output = frame.kind == LOCAL_STDERR ? STDERR_FILENO : STDOUT_FILENO;

	switch (frame.kind) {
	case LOCAL_STDOUT:
	case LOCAL_STDERR:
		if (!write_output(session, output))
			return -1;
		if (output == STDOUT_FILENO)
			dprintf(STDERR_FILENO, "%s: writing: %s\n", session->name, strerror(errno));
		return 1;
	case LOCAL_END:
		return frame.length ? frame.data[0] : UNAVAILABLE;
	case LOCAL_CREDIT:
		session->credit += local_number(&frame);
		return -1;
	case LOCAL_ACCEPTED:
	case LOCAL_ORDER:
	default:
		return -1;
	}
}

/* Follows one answer, whose first frame is there; returns the status, -1 if it breaks off. */
static int follow(struct session *session)
{
	for (;;) {
		int status = take_frame(session);

		if (status >= 0)
			return status;
		if (session->manner == RELAY && wait_frame(session))
			return -1;
		if (local_receive(session->socket, &frame))
			return -1;
	}
}

static int open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(RELAYED) / sizeof(RELAYED[0]); i++) {
		struct sigaction action;

		/* nohup(1) and shells have some ignored, and so they stay. */
		if (!sigaction(RELAYED[i], NULL, &action) && action.sa_handler != SIG_IGN)
			sigaddset(&set, RELAYED[i]);
	}
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return -1;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int run(struct session *session, const char *request, size_t size)
{
	const struct local_patience patience = local_patience_begin();

	for (;;) {
		int status;

		session->socket = local_open(request, size, &frame, &patience);
		if (session->socket < 0)
			return explain(session->name, errno);
		if (session->manner == RELAY && session->signals < 0)
			session->signals = open_signals();
		status = follow(session);
		close(session->socket);
		if (status >= 0)
			return status;
		if (session->manner != QUERY || session->written)
			return complain(session->name,
					"the node daemon has ended; what was asked may be done or not");
		if (!local_patience_wait(&patience))
			return explain(session->name, ETIMEDOUT);
	}
}

/* A descriptor of ours must not become what is our standard input when the caller has closed that. */
static void fill_standard_descriptors(void)
{
	int fd;

	/* Not for writing, so that writing there still fails. */
	do
		fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	close(fd);
}

int main(int argc, char **argv)
{
	struct session session = { .signals = -1, .credit = LOCAL_WINDOW };
	mode_t mask = umask(0);
	char *cwd = getcwd(NULL, 0);
	char *request;
	size_t size;

	(void)umask(mask);
	fill_standard_descriptors();
	if (argc > 1 && !strcmp(base_name(argv[0]), "command"))
		argv++;
	if (argc < 1 || !argv[0])
		return UNAVAILABLE;
	session.name = base_name(argv[0]);
	session.manner = find_manner(session.name);
	request = local_request(argv, environ, cwd ? cwd : "", mask, &size);
	if (!request)
		return explain(session.name, errno);
	return run(&session, request, size);
}
