/*
 * The caller's side of the node daemon's local socket, for programs of a node's userland.
 *
 * docs/protocol.md has the format; ssi.common.frames is the same in Python. Included by one file of
 * each program. Nothing here prints or exits; what fails returns -1 with errno.
 */
#ifndef SSI_LOCAL_H
#define SSI_LOCAL_H

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The tests compile with others. */
#ifndef LOCAL_FOLDER
#define LOCAL_FOLDER "/run/ssi"
#endif
#ifndef LOCAL_SERVER_UID
#define LOCAL_SERVER_UID 0
#endif
#ifndef LOCAL_PATIENCE_MS
#define LOCAL_PATIENCE_MS 10000
#endif

enum {
	LOCAL_VERSION = 1,
	LOCAL_MAX_REQUEST = 256 * 1024,
	LOCAL_MAX_FRAME = 64 * 1024,
	LOCAL_WINDOW = 64 * 1024,
	LOCAL_STEP_MS = 20,
};

enum local_reply { LOCAL_ACCEPTED, LOCAL_STDOUT, LOCAL_STDERR, LOCAL_END, LOCAL_CREDIT, LOCAL_ORDER };
enum local_given { LOCAL_STDIN = 1, LOCAL_END_OF_STDIN = 3, LOCAL_SIGNAL = 4, LOCAL_REPORT = 5 };

struct local_head {
	uint8_t kind;
	uint32_t length;
} __attribute__((packed));

struct local_frame {
	enum local_reply kind;
	size_t length;
	unsigned char data[LOCAL_MAX_FRAME + 1];	/* and a NUL */
};

struct local_fields {
	uint32_t length, version, argc, envc, umask;
};

/* Of one request, all tries together. */
struct local_patience {
	int64_t until_ms;
};

static inline int64_t local_now_ms(void)
{
	struct timespec now = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline struct local_patience local_patience_begin(void)
{
	return (struct local_patience){ .until_ms = local_now_ms() + LOCAL_PATIENCE_MS };
}

/* Waits a moment; false once the patience is at its end. */
static inline bool local_patience_wait(const struct local_patience *patience)
{
	const struct timespec step = { .tv_nsec = LOCAL_STEP_MS * 1000000L };

	if (local_now_ms() >= patience->until_ms)
		return false;
	(void)nanosleep(&step, NULL);
	return true;
}

static inline size_t local_strings_length(char *const *strings, uint32_t *count)
{
	size_t length = 0;

	for (*count = 0; strings[*count]; (*count)++)
		length += strlen(strings[*count]) + 1;
	return length;
}

static inline char *local_copy_strings(char *target, char *const *strings)
{
	for (; *strings; strings++)
		target = stpcpy(target, *strings) + 1;
	return target;
}

/* Returns a request in memory of its own, or NULL: E2BIG if it would be too long. */
static inline char *local_request(char *const *argv, char *const *environment, const char *cwd,
				  mode_t mask, size_t *size)
{
	struct local_fields fields = {
		.version = htole32(LOCAL_VERSION),
		.umask = htole32(mask),
	};
	uint32_t argc, envc;
	size_t length = local_strings_length(argv, &argc);
	char *request, *end;

	length += local_strings_length(environment, &envc) + strlen(cwd) + 1;
	length += sizeof(fields) - sizeof(fields.length);
	if (length > LOCAL_MAX_REQUEST) {
		errno = E2BIG;
		return NULL;
	}
	fields.length = htole32((uint32_t)length);
	fields.argc = htole32(argc);
	fields.envc = htole32(envc);
	*size = sizeof(fields.length) + length;
	request = malloc(*size);
	if (!request)
		return NULL;
	memcpy(request, &fields, sizeof(fields));
	end = local_copy_strings(request + sizeof(fields), argv);
	end = local_copy_strings(end, environment);
	(void)strcpy(end, cwd);
	return request;
}

/* 0, or -1: EPERM if somebody else than the node daemon listens there. */
static inline int local_check_server(int fd)
{
	struct ucred server = { .uid = (uid_t)-1 };
	socklen_t size = sizeof(server);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size))
		return -1;
	if (server.uid != LOCAL_SERVER_UID) {
		errno = EPERM;
		return -1;
	}
	return 0;
}

/* Returns a connection, or -1: ENOSYS if this is no node of a cluster. */
static inline int local_connect(void)
{
	const struct sockaddr_un address = {
		.sun_family = AF_UNIX,
		.sun_path = LOCAL_FOLDER "/ssid.sock",
	};
	struct stat folder;
	int fd, failed;

	if (stat(LOCAL_FOLDER, &folder)) {
		if (errno == ENOENT || errno == ENOTDIR)
			errno = ENOSYS;
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	do
		failed = connect(fd, (const struct sockaddr *)&address, sizeof(address));
	while (failed && errno == EINTR);
	if (failed || local_check_server(fd)) {
		failed = errno;
		close(fd);
		errno = failed;
		return -1;
	}
	return fd;
}

/* Whether `error` means that the daemon is being restarted. */
static inline bool local_is_restart(int error)
{
	return error == ENOENT || error == ECONNREFUSED || error == ECONNRESET || error == EPIPE;
}

static inline int local_wait(int fd, short events)
{
	struct pollfd poller = { .fd = fd, .events = events };

	return poll(&poller, 1, -1) < 0 && errno != EINTR ? -1 : 0;
}

static inline int local_send(int fd, const void *data, size_t length)
{
	const char *next = data;

	while (length) {
		ssize_t sent = send(fd, next, length, MSG_NOSIGNAL);

		if (sent < 0) {
			if (errno == EAGAIN && !local_wait(fd, POLLOUT))
				continue;
			if (errno == EINTR)
				continue;
			return -1;
		}
		next += sent;
		length -= (size_t)sent;
	}
	return 0;
}

static inline int local_send_frame(int fd, enum local_given kind, const void *data, size_t length)
{
	const struct local_head head = {
		.kind = (uint8_t)kind,
		.length = htole32((uint32_t)length),
	};

	return local_send(fd, &head, sizeof(head)) || local_send(fd, data, length) ? -1 : 0;
}

/* 0, or -1: EPIPE at the end. */
static inline int local_receive_all(int fd, void *data, size_t length)
{
	char *next = data;

	while (length) {
		ssize_t got = recv(fd, next, length, 0);

		if (got == 0)
			errno = EPIPE;
		if (got <= 0) {
			if (got < 0 && errno == EAGAIN && !local_wait(fd, POLLIN))
				continue;
			if (got < 0 && errno == EINTR)
				continue;
			return -1;
		}
		next += got;
		length -= (size_t)got;
	}
	return 0;
}

static inline int local_receive(int fd, struct local_frame *frame)
{
	struct local_head head;

	if (local_receive_all(fd, &head, sizeof(head)))
		return -1;
	frame->kind = (enum local_reply)head.kind;
	frame->length = le32toh(head.length);
	if (frame->length > LOCAL_MAX_FRAME) {
		errno = EPROTO;
		return -1;
	}
	if (local_receive_all(fd, frame->data, frame->length))
		return -1;
	frame->data[frame->length] = 0;
	return 0;
}

/* Returns the number in a frame of kind CREDIT, 0 for one that is none. */
static inline uint32_t local_number(const struct local_frame *frame)
{
	uint32_t number = 0;

	if (frame->length == sizeof(number))
		memcpy(&number, frame->data, sizeof(number));
	return le32toh(number);
}

/*
 * Sends the request and reads the first frame of the answer; returns the connection, or -1. Until
 * ACCEPTED has come nothing has been done, so a daemon that is being restarted is asked again.
 */
static inline int local_open(const char *request, size_t size, struct local_frame *first,
			     const struct local_patience *patience)
{
	for (;;) {
		int fd = local_connect();

		if (fd >= 0) {
			/* One that turns us away does not read, but has said why. */
			(void)local_send(fd, request, size);
			if (!local_receive(fd, first))
				return fd;
			int error = errno;
			close(fd);
			errno = error;
		}
		if (!local_is_restart(errno))
			return -1;
		if (!local_patience_wait(patience)) {
			errno = ETIMEDOUT;
			return -1;
		}
	}
}

#endif
