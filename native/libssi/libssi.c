/*
 * libssi: libcluster's calls, answered by the node daemon's applets api-...
 *
 * An answer is lines of a key, a space and a value; unknown keys are skipped. Numbers are read by hand:
 * strtoul of a newer C library would tie this to it, and a root may be older than what it is built on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "../local.h"
#include "ssi.h"

enum { NUMBER_BYTES = 24, NAME_BYTES = 256 };

/* Of applets: general failure, wrong words, too many requests (EX_TEMPFAIL), not allowed (EX_NOPERM). */
enum { STATUS_FAILED = 1, STATUS_USAGE = 2, STATUS_BUSY = 75, STATUS_DENIED = 77 };

static char *const NO_ENVIRONMENT[] = { NULL };

static const char GOTO[] = "/proc/self/goto";

static const char *const STATES[] = {
	[CLUSTERNODE_NEVERUP] = "NEVERUP", [CLUSTERNODE_COMINGUP] = "COMINGUP",
	[CLUSTERNODE_UP] = "UP", [CLUSTERNODE_SHUTDOWN] = "SHUTDOWN",
	[CLUSTERNODE_GOINGDOWN] = "GOINGDOWN", [CLUSTERNODE_KCLEANUP] = "KCLEANUP",
	[CLUSTERNODE_UCLEANUP] = "UCLEANUP", [CLUSTERNODE_DOWN] = "DOWN",
};

static const char *const WHICH[] = {
	[CLUSTER_TRANSITION_THIS] = "this", [CLUSTER_TRANSITION_NEXT] = "next",
	[CLUSTER_TRANSITION_PREV] = "prev", [CLUSTER_TRANSITION_FIRST] = "first",
	[CLUSTER_TRANSITION_LAST] = "last",
};

/* Takes one line of an answer; false ends the call with errno. */
typedef bool taker(void *target, const char *key, const char *value);

static char *format_number(uint64_t number, char text[NUMBER_BYTES])
{
	char *next = text + NUMBER_BYTES - 1;

	*next = 0;
	do
		*--next = (char)('0' + number % 10);
	while (number /= 10);
	return next;
}

static uint64_t parse_number(const char *text)
{
	uint64_t number = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		number = number * 10 + (uint64_t)(*text - '0');
	return number;
}

static clusternode_state_t parse_state(const char *text)
{
	for (size_t i = CLUSTERNODE_NEVERUP; i <= CLUSTERNODE_DOWN; i++)
		if (!strcmp(STATES[i], text))
			return (clusternode_state_t)i;
	return CLUSTERNODE_NEVERUP;
}

static void copy_text(char *target, size_t room, const char *text)
{
	size_t length = strnlen(text, room - 1);

	memcpy(target, text, length);
	target[length] = 0;
}

/* Copies what the caller has room for: his structure may be of an older version. */
static int copy_out(void *target, int size, const void *source, size_t length)
{
	if (!target || size <= 0) {
		errno = EINVAL;
		return -1;
	}
	memcpy(target, source, (size_t)size < length ? (size_t)size : length);
	return 0;
}

static bool take_transition(void *target, const char *key, const char *value)
{
	cluster_transinfo_t *info = target;

	if (!strcmp(key, "transition"))
		info->transid = parse_number(value);
	else if (!strcmp(key, "time_us"))
		info->time_us = (int64_t)parse_number(value);
	else if (!strcmp(key, "view"))
		info->view = parse_number(value);
	else if (!strcmp(key, "node"))
		info->node = (clusternode_t)parse_number(value);
	else if (!strcmp(key, "was"))
		info->from = parse_state(value);
	else if (!strcmp(key, "now"))
		info->to = parse_state(value);
	else if (!strcmp(key, "cause"))
		copy_text(info->cause, sizeof(info->cause), value);
	return true;
}

static bool take_node(void *target, const char *key, const char *value)
{
	clusternode_info_t *info = target;

	if (!strcmp(key, "node"))
		info->node = info->last.node = (clusternode_t)parse_number(value);
	else if (!strcmp(key, "state"))
		info->state = parse_state(value);
	else if (!strcmp(key, "member"))
		info->member = (int)parse_number(value);
	else if (!strcmp(key, "address"))
		copy_text(info->address, sizeof(info->address), value);
	else
		return take_transition(&info->last, key, value);
	return true;
}

struct cluster {
	int node, max_nodes;
	char name[NAME_BYTES];
};

static bool take_cluster(void *target, const char *key, const char *value)
{
	struct cluster *cluster = target;

	if (!strcmp(key, "node"))
		cluster->node = (int)parse_number(value);
	else if (!strcmp(key, "max_nodes"))
		cluster->max_nodes = (int)parse_number(value);
	else if (!strcmp(key, "name"))
		copy_text(cluster->name, sizeof(cluster->name), value);
	return true;
}

struct membership {
	transid_t transid;
	clusternode_t *nodes;
	int room, count;
};

static bool take_member(void *target, const char *key, const char *value)
{
	struct membership *membership = target;

	if (!strcmp(key, "transition")) {
		membership->transid = parse_number(value);
	} else if (!strcmp(key, "up")) {
		if (membership->count + 1 >= membership->room) {
			errno = ERANGE;
			return false;
		}
		membership->nodes[membership->count++] = (clusternode_t)parse_number(value);
	}
	return true;
}

static bool take_lines(char *text, taker *take, void *target)
{
	char *position = NULL;

	for (char *line = strtok_r(text, "\n", &position); line;
	     line = strtok_r(NULL, "\n", &position)) {
		char *space = strchr(line, ' ');

		if (!space)
			continue;
		*space = 0;
		if (!take(target, line, space + 1))
			return false;
	}
	return true;
}

static int status_errno(unsigned char status)
{
	switch (status) {
	case STATUS_FAILED:
	case STATUS_USAGE:
		return EINVAL;
	case STATUS_BUSY:
		return EMFILE;
	case STATUS_DENIED:
		return EPERM;
	default:
		return EIO;
	}
}

/* The text of an answer, which may come in several frames. */
struct answer {
	char *text;
	size_t length;
};

static int add_text(struct answer *answer, const struct local_frame *frame)
{
	char *larger = realloc(answer->text, answer->length + frame->length + 1);

	if (!larger)
		return -1;
	memcpy(larger + answer->length, frame->data, frame->length + 1);
	answer->text = larger;
	answer->length += frame->length;
	return 0;
}

/* Reads an answer to its end; returns its status, or -1. */
static int read_answer(int fd, struct local_frame *frame, struct answer *answer)
{
	while (frame->kind != LOCAL_END) {
		if (frame->kind == LOCAL_STDOUT && add_text(answer, frame))
			return -1;
		if (local_receive(fd, frame))
			return -1;
	}
	return frame->length ? frame->data[0] : STATUS_USAGE;
}

/* Asks; if the daemon ends meanwhile, again, unless asking twice would do something twice. */
static int converse(const char *request, size_t size, struct local_frame *frame,
		    struct answer *answer, bool again)
{
	const struct local_patience patience = local_patience_begin();

	for (;;) {
		int status, error;
		int fd = local_open(request, size, frame, &patience);

		if (fd < 0)
			return -1;
		answer->length = 0;
		status = read_answer(fd, frame, answer);
		error = errno;
		close(fd);
		errno = error;
		if (status >= 0)
			return status;
		if (!again || !local_is_restart(errno))
			return -1;
		if (!local_patience_wait(&patience)) {
			errno = ETIMEDOUT;
			return -1;
		}
	}
}

static int ask_with(char *const *words, taker *take, void *target, bool again)
{
	struct answer answer = { 0 };
	struct local_frame *frame = malloc(sizeof(*frame));
	size_t size;
	char *request = local_request(words, NO_ENVIRONMENT, "/", 0, &size);
	int status = -1;

	if (frame && request)
		status = converse(request, size, frame, &answer, again);
	if (status > 0) {
		errno = status_errno((unsigned char)status);
		status = -1;
	}
	if (!status && answer.length && !take_lines(answer.text, take, target))
		status = -1;
	free(answer.text);
	free(request);
	free(frame);
	return status;
}

static int ask(char *const *words, taker *take, void *target)
{
	return ask_with(words, take, target, true);
}

static int ask_cluster(struct cluster *cluster)
{
	char *words[] = { (char[]){ "api-cluster" }, NULL };

	*cluster = (struct cluster){ 0 };
	return ask(words, take_cluster, cluster);
}

static int ask_node(clusternode_t node, clusternode_info_t *info)
{
	char number[NUMBER_BYTES];
	char *words[] = { (char[]){ "api-node" }, format_number(node, number), NULL };

	*info = (clusternode_info_t){ 0 };
	return ask(words, take_node, info);
}

/* 1 if there is such a transition, 0 if not. */
static int ask_transition(char *const *words, transid_t *transid, int size,
			  cluster_transinfo_t *info)
{
	cluster_transinfo_t found = { 0 };

	if (ask(words, take_transition, &found))
		return -1;
	if (!found.transid)
		return 0;
	if (copy_out(info, size, &found, sizeof(found)))
		return -1;
	*transid = found.transid;
	return 1;
}

int cluster_membership(transid_t *transid, int length, clusternode_t *nodes)
{
	char *words[] = { (char[]){ "api-membership" }, NULL };
	struct membership membership = { .nodes = nodes, .room = length };

	if (!transid || !nodes || length < 1) {
		errno = EINVAL;
		return -1;
	}
	if (ask(words, take_member, &membership))
		return -1;
	*transid = membership.transid;
	nodes[membership.count] = 0;
	return membership.count;
}

int cluster_transition(transid_t *transid, int size, cluster_transinfo_t *info)
{
	char number[NUMBER_BYTES];
	char *words[] = { (char[]){ "api-transition" }, format_number(*transid, number), NULL };

	return ask_transition(words, transid, size, info);
}

int cluster_detailedtransition(int which, transid_t *transid, int size, cluster_transinfo_t *info)
{
	char number[NUMBER_BYTES], word[8];
	char *words[] = {
		(char[]){ "api-detailedtransition" }, word, format_number(*transid, number), NULL
	};

	if (which < CLUSTER_TRANSITION_THIS || which > CLUSTER_TRANSITION_LAST) {
		errno = EINVAL;
		return -1;
	}
	copy_text(word, sizeof(word), WHICH[which]);
	return ask_transition(words, transid, size, info);
}

int clusternode_info(clusternode_t node, int size, clusternode_info_t *info)
{
	clusternode_info_t found;

	if (ask_node(node, &found))
		return -1;
	return copy_out(info, size, &found, sizeof(found));
}

static bool take_nothing(void *target, const char *key, const char *value)
{
	(void)target;
	(void)key;
	(void)value;
	return true;
}

int clusternode_setinfo(clusternode_t node, int what, int size, const clusternode_info_t *info)
{
	char number[NUMBER_BYTES], state[16];
	char *words[] = { (char[]){ "api-setstate" }, format_number(node, number), state, NULL };

	if (what != CLUSTERNODE_SETSTATE || !info ||
	    size < (int)(offsetof(clusternode_info_t, state) + sizeof(info->state)) ||
	    info->state < CLUSTERNODE_NEVERUP || info->state > CLUSTERNODE_DOWN) {
		errno = EINVAL;
		return -1;
	}
	copy_text(state, sizeof(state), STATES[info->state]);
	return ask_with(words, take_nothing, NULL, false);
}

int clusternode_avail(clusternode_t node)
{
	clusternode_info_t info;

	return ask_node(node, &info) ? -1 : info.state == CLUSTERNODE_UP;
}

int clusternode_num(void)
{
	struct cluster cluster;

	return ask_cluster(&cluster) ? -1 : cluster.node;
}

int cluster_maxnodes(void)
{
	struct cluster cluster;

	return ask_cluster(&cluster) ? -1 : cluster.max_nodes;
}

char *cluster_name(void)
{
	static _Thread_local struct cluster cluster;

	return ask_cluster(&cluster) ? NULL : cluster.name;
}

int cluster_ssiconfig(void)
{
	struct stat folder;

	return !stat(LOCAL_FOLDER, &folder);
}

int clusternode_get_ip(clusternode_t node, struct sockaddr *address, int *length)
{
	struct sockaddr_in found = { .sin_family = AF_INET };
	clusternode_info_t info;

	if (ask_node(node, &info))
		return -1;
	if (inet_pton(AF_INET, info.address, &found.sin_addr) != 1) {
		errno = EADDRNOTAVAIL;
		return -1;
	}
	if (!length || copy_out(address, *length, &found, sizeof(found)))
		return -1;
	*length = sizeof(found);
	return 0;
}

int cluster_events_open(transid_t since)
{
	const struct local_patience patience = local_patience_begin();
	char number[NUMBER_BYTES];
	char *words[] = {
		(char[]){ "api-events" }, format_number(since, number), (char[]){ "simple" }, NULL
	};
	struct local_frame *frame = malloc(sizeof(*frame));
	size_t size;
	char *request = local_request(words, NO_ENVIRONMENT, "/", 0, &size);
	int fd = -1;

	if (frame && request)
		fd = local_open(request, size, frame, &patience);
	if (fd >= 0 && frame->kind != LOCAL_ACCEPTED) {
		/* Turned away: too many of this user's are open. */
		close(fd);
		fd = -1;
		errno = EMFILE;
	}
	free(request);
	free(frame);
	return fd;
}

/* Reads frames up to the first of kind STDOUT, which is one transition. */
static int read_event(int fd, struct local_frame *frame)
{
	do {
		/* Only here may it be that nothing has come: a frame is sent at once. */
		char first;
		ssize_t got = recv(fd, &first, 1, MSG_PEEK);

		if (got < 0 || (got && local_receive(fd, frame)))
			return local_is_restart(errno) ? 0 : -1;
		if (!got || frame->kind == LOCAL_END)
			return 0;
	} while (frame->kind != LOCAL_STDOUT);
	return 1;
}

int cluster_events_read(int fd, cluster_transinfo_t *info)
{
	struct local_frame *frame = malloc(sizeof(*frame));
	int found;

	if (!frame)
		return -1;
	found = read_event(fd, frame);
	if (found == 1) {
		*info = (cluster_transinfo_t){ 0 };
		take_lines((char *)frame->data, take_transition, info);
	}
	free(frame);
	return found;
}

int ssi_migrate(int node)
{
	char number[NUMBER_BYTES];
	const char *text;
	ssize_t written;
	int fd, error;

	if (node < 1) {
		errno = EINVAL;
		return -1;
	}
	text = format_number((uint64_t)node, number);
	fd = open(GOTO, O_WRONLY | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT)
			errno = ENOSYS;
		return -1;
	}
	/* A signal's handler interrupts the write and not the move: the next write waits for that. */
	do
		written = write(fd, text, strlen(text));
	while (written < 0 && errno == EINTR);
	error = errno;
	close(fd);
	errno = error;
	return written < 0 ? -1 : 0;
}

int migrate(int node) __attribute__((alias("ssi_migrate")));
