/*
 * checkpoint: saves a process into a file.
 *
 * The node daemon holds, copies and describes the process; the file is ours alone: it is opened, written
 * and named with the rights of who calls. It has its name only when all of it is on disk.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>

#include "local.h"
#include "saved.h"

enum { FAILED = 1, UNAVAILABLE = 69 };

static const char NAME[] = "checkpoint";

static struct local_frame frame;
static int target = -1;
static char path[PATH_MAX], partial[PATH_MAX + 16];

static void remove_partial(void)
{
	if (target >= 0)
		(void)unlink(partial);
}

/* Nothing is left of half a file. */
static void die(int number)
{
	remove_partial();
	(void)signal(number, SIG_DFL);
	(void)raise(number);
}

static int complain(const char *what, int status)
{
	remove_partial();
	(void)dprintf(STDERR_FILENO, "%s: %s\n", NAME, what);
	return status;
}

/* Returns 0 or an errno. */
static int begin_file(const char *name)
{
	static const int ENDS[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGXFSZ };
	struct stat there;

	if (strlen(name) >= sizeof(path))
		return ENAMETOOLONG;
	(void)strcpy(path, name);
	/* A device, say, is not to be replaced. */
	if (!stat(path, &there) && !S_ISREG(there.st_mode))
		return S_ISDIR(there.st_mode) ? EISDIR : EEXIST;
	(void)snprintf(partial, sizeof(partial), "%s.XXXXXX", path);
	/* For nobody else: what is in its memory may be secret. */
	target = mkostemp(partial, O_CLOEXEC);
	if (target < 0)
		return errno;
	for (size_t i = 0; i < sizeof(ENDS) / sizeof(ENDS[0]); i++)
		if (signal(ENDS[i], die) == SIG_IGN)
			(void)signal(ENDS[i], SIG_IGN);
	return 0;
}

static int write_file(void)
{
	const unsigned char *next = frame.data;
	size_t left = frame.length;

	while (left) {
		const ssize_t written = write(target, next, left);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno;
		next += written;
		left -= (size_t)written;
	}
	return 0;
}

static int sync_folder(void)
{
	char copy[PATH_MAX];
	int folder, failure;

	(void)strcpy(copy, path);
	folder = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder < 0)
		return 0;	/* who may write there need not be able to read it */
	failure = fsync(folder) ? errno : 0;
	close(folder);
	return failure;
}

/* Returns 0 or an errno. */
static int keep_file(void)
{
	if (target < 0)
		return EPROTO;
	if (fsync(target) || rename(partial, path))
		return errno;
	close(target);
	target = -1;
	return sync_folder();
}

/* Does what the daemon wants done with the file; returns an errno, -1 if it wants nothing of that. */
static int obey(int connection)
{
	const char *words = (const char *)frame.data;
	int failure = -1;

	if (!strncmp(words, SAVED_OPEN, strlen(SAVED_OPEN)))
		failure = begin_file(words + strlen(SAVED_OPEN));
	else if (!strcmp(words, SAVED_KEEP))
		failure = keep_file();
	if (!failure)
		(void)saved_report(connection, 0);
	return failure;
}

static int complain_about_file(int failure)
{
	char text[PATH_MAX + 128];

	(void)snprintf(text, sizeof(text), "%s: %s", path, strerror(failure));
	return complain(text, FAILED);
}

/* Returns the status at the end, -1 before it. */
static int take_frame(int connection)
{
	int failure;

	switch (frame.kind) {
	case LOCAL_STDOUT:
		if (target >= 0) {
			failure = write_file();
			return failure ? complain_about_file(failure) : -1;
		}
		return write(STDOUT_FILENO, frame.data, frame.length) < 0 ? FAILED : -1;
	case LOCAL_STDERR:
		(void)!write(STDERR_FILENO, frame.data, frame.length);
		return -1;
	case LOCAL_ORDER:
		failure = obey(connection);
		return failure > 0 ? complain_about_file(failure) : -1;
	case LOCAL_END:
		remove_partial();
		return frame.length ? frame.data[0] : UNAVAILABLE;
	case LOCAL_ACCEPTED:
	case LOCAL_CREDIT:
	default:
		return -1;
	}
}

int main(int argc, char **argv)
{
	const struct local_patience patience = local_patience_begin();
	char *const none[] = { NULL };
	size_t size;
	char *request;
	int connection, status;

	(void)argc;
	request = local_request(argv, none, "", 0, &size);
	if (!request)
		return complain(strerror(errno), FAILED);
	connection = local_open(request, size, &frame, &patience);
	if (connection < 0)
		return complain(errno == ENOSYS ? "this is no node of a cluster" : strerror(errno),
				errno == ENOSYS ? FAILED : UNAVAILABLE);
	do
		status = take_frame(connection);
	while (status < 0 && !local_receive(connection, &frame));
	return status < 0 ? complain("the node daemon has ended", UNAVAILABLE) : status;
}
