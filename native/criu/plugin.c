/*
 * CRIU's plugin: the two places in which a move waits for the node daemon's word, and the descriptors
 * that are the remote device's.
 *
 * The daemon decides; between "dumped" and its answer the process is held where it was, between "ready"
 * and its answer where it is to be. A daemon that dies meanwhile is waited for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "asking.h"
#include "become.h"
#include "kept.h"
#include "loose.h"
#include "move.h"
#include "sent.h"

/* As criu/include/criu-plugin.h has them; they are a stable interface. */
enum { STAGE_DUMP = 0 };
enum { HOOK_DUMP_UNIX_SOCKET = 0, HOOK_DUMP_EXT_FILE = 2, HOOK_RESTORE_EXT_FILE = 3, HOOK_RESUME_DEVICES_LATE = 9,
       HOOK_CHECKPOINT_DEVICES = 11, HOOKS = 12 };
enum { PLUGIN_VERSION = 2 << 8 };

struct plugin {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int result);
	unsigned int version, hooks_count;
	void *hooks[HOOKS];
};

extern struct plugin CR_PLUGIN_DESC;

enum { AGAIN_MS = 200 };

static pid_t held;

/* -- the daemon ------------------------------------------------------------------------------- */

/* Asks until a daemon has answered. */
static void ask(uint32_t question, int number, struct answer *answer)
{
	while (!ask_once(getenv(MOVE_VARIABLE), question, number, answer))
		(void)poll(NULL, 0, AGAIN_MS);
}

/* -- leaving ---------------------------------------------------------------------------------- */

static int hear_of_process(int pid)
{
	held = pid;
	return 0;
}

static int dump_file(int fd, int id)
{
	struct stat file;

	(void)id;
	/* The daemon finds out of which handle it is. */
	if (fstat(fd, &file) || !S_ISCHR(file.st_mode))
		return -ENOTSUP;
	return 0;
}

static bool has_name(socklen_t size)
{
	return size > sizeof(sa_family_t);
}

/* Half a pair: the daemon replaces it in the images. What has a name is connected to somebody else. */
static int dump_socket(int fd, int id)
{
	struct sockaddr_un own, other;
	socklen_t own_size = sizeof(own), other_size = sizeof(other);

	(void)id;
	if (!getenv(MOVE_VARIABLE) || getsockname(fd, (struct sockaddr *)&own, &own_size) ||
	    has_name(own_size) || getpeername(fd, (struct sockaddr *)&other, &other_size) ||
	    has_name(other_size))
		return -ENOTSUP;
	return 0;
}

static void kill_held(void)
{
	pid_t pid;
	int status;

	(void)kill(held, SIGKILL);
	/* Its threads, which we trace as well, first: the process has not ended until we have seen that. */
	do
		pid = waitpid(-1, &status, __WALL);
	while (pid >= 0 && (pid != held || WIFSTOPPED(status)));
}

/* Takes the words apart that a ghost is made of; false if they are not whole. */
static bool read_ghost(struct answer *answer, struct ghost *ghost)
{
	char **variables = list_words(answer, ghost->words, GHOST_WORDS);

	if (!variables || !ghost->words[0] || answer->packet.head.variables != 1)
		return false;
	ghost->variable = variables[0];
	return true;
}

/* Returns who keeps the memory that follows, 0 if all of it has been sent, or a negative errno. */
static int keep(void)
{
	const char *words = getenv(MOVE_PAGES);
	int connection, file, pid, follow, failure;
	pid_t keeper;

	if (!words)
		return 0;
	if (sscanf(words, MOVE_PAGES_WORDS, &connection, &file, &pid, &follow) != 4)
		return -EINVAL;
	if (!follow)
		return send_memory(connection, file, held);
	keeper = keep_memory(held);
	if (keeper < 0)
		return keeper;
	failure = serve(connection, held, keeper);
	return failure ? failure : keeper;
}

static void leave(int stage, int result)
{
	static struct answer answer, done;
	static struct looses threads;
	struct ghost ghost;
	int kept, failure = 0;

	if (stage != STAGE_DUMP || result || !held || !getenv(MOVE_VARIABLE))
		return;
	kept = keep();
	ask(MOVE_DUMPED, kept, &answer);
	/* From here on it ends: who has its memory then must find it as it is. */
	if (kept > 0 && answer.packet.head.verdict != MOVE_GO_ON)
		failure = loosen(held, &threads);
	if (answer.packet.head.verdict == MOVE_HOLD && !failure) {
		(void)ptrace(PTRACE_SETOPTIONS, held, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
		ask(MOVE_HELD, held, &answer);
	}
	switch (answer.packet.head.verdict) {
	case MOVE_KILL:
		kill_held();
		break;
	case MOVE_GHOST:
		if (!failure)
			failure = read_ghost(&answer, &ghost) ? become(held, &ghost) : -EPROTO;
		if (failure)
			tie(&threads);
		break;
	default:
		tie(&threads);
		return;
	}
	ask(MOVE_DONE, failure, &done);
}

/* -- arriving --------------------------------------------------------------------------------- */

static int restore_file(int id)
{
	static struct answer answer;

	ask(MOVE_FILE, id, &answer);
	return answer.packet.head.verdict == MOVE_GO_ON ? answer.fd : -1;
}

static int arrive(int pid)
{
	static struct answer answer;

	/* If we die it must not run: nobody has said so. */
	(void)ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
	ask(MOVE_READY, pid, &answer);
	if (answer.packet.head.verdict != MOVE_GO_ON)
		(void)syscall(SYS_kill, pid, SIGKILL); /* kill() would wait for it to become a ghost: preload.c */
	return 0;
}

static int begin(int stage)
{
	static struct answer answer;
	const char *line = getenv(MOVE_LINE);

	if (stage != STAGE_DUMP || !line)
		return 0;
	ask(MOVE_BEGIN, 0, &answer);
	if (answer.packet.head.verdict != MOVE_GO_ON || dup2(answer.fd, (int)strtol(line, NULL, 10)) < 0)
		return -1;
	close(answer.fd);
	return 0;
}

/* Functions as data: ISO C has no word for it. */
static void *as_data(int (*hook)(int))
{
	void *data;

	memcpy(&data, &hook, sizeof(data));
	return data;
}

struct plugin CR_PLUGIN_DESC = {
	.name = "ssi", .init = begin, .exit = leave, .version = PLUGIN_VERSION, .hooks_count = HOOKS,
};

static void __attribute__((constructor)) register_hooks(void)
{
	int (*dump)(int, int) = dump_file, (*dump_unix)(int, int) = dump_socket;

	memcpy(&CR_PLUGIN_DESC.hooks[HOOK_DUMP_UNIX_SOCKET], &dump_unix, sizeof(dump_unix));
	memcpy(&CR_PLUGIN_DESC.hooks[HOOK_DUMP_EXT_FILE], &dump, sizeof(dump));
	CR_PLUGIN_DESC.hooks[HOOK_RESTORE_EXT_FILE] = as_data(restore_file);
	CR_PLUGIN_DESC.hooks[HOOK_RESUME_DEVICES_LATE] = as_data(arrive);
	CR_PLUGIN_DESC.hooks[HOOK_CHECKPOINT_DEVICES] = as_data(hear_of_process);
}
