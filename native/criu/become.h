/*
 * Has a process that we trace become a ghost, in its place: the same PID, parent, group and session. The
 * ghost itself closes the descriptors that do not stay.
 */
#ifndef SSI_BECOME_H
#define SSI_BECOME_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "traced.h"
#include "words.h"

#define GHOST_PROGRAM "/usr/bin/onnode"

enum { BECOME_ROOM = 8192 };

struct ghost {
	char *words[GHOST_WORDS];	/* its arguments, up to a NULL */
	char *variable;		/* of its environment, the only one: SSI_KEPT=FD,...;SIGNAL,... */
};

struct become {
	struct traced traced;
	int memory;
	uint64_t room, next;
};

/* Puts bytes into its memory; returns where, 0 if there is no room. */
static uint64_t put(struct become *be, const void *data, size_t size)
{
	const uint64_t place = be->next;

	if (place + size > be->room + BECOME_ROOM ||
	    pwrite(be->memory, data, size, (off_t)place) != (ssize_t)size)
		return 0;
	be->next = (place + size + 15) & ~(uint64_t)15;
	return place;
}

static long exec_ghost(struct become *be, const struct ghost *ghost)
{
	const uint64_t path = put(be, GHOST_PROGRAM, sizeof(GHOST_PROGRAM));
	uint64_t variables[2] = { put(be, ghost->variable, strlen(ghost->variable) + 1) };
	uint64_t arguments[GHOST_WORDS] = { 0 }, list, environment;

	for (size_t i = 0; ghost->words[i]; i++)
		if (!(arguments[i] = put(be, ghost->words[i], strlen(ghost->words[i]) + 1)))
			return -E2BIG;
	list = put(be, arguments, sizeof(arguments));
	environment = put(be, variables, sizeof(variables));
	if (!path || !list || !environment || !variables[0])
		return -E2BIG;
	return call(&be->traced, SYS_execve, path, list, environment, 0, 0);
}

/* Returns 0, or a negative errno with which it is as it was. */
static long make_ghost(struct become *be, const struct ghost *ghost)
{
	long result = call(&be->traced, SYS_mmap, 0, BECOME_ROOM, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, UINT64_MAX);

	if (result < 0 && result > -4096)
		return result;
	be->room = be->next = (uint64_t)result;
	/* What it keeps must be open behind the exec. */
	for (const char *next = strchr(ghost->variable, '='); next && next[1] && next[1] != ';';) {
		char *end;
		const unsigned long fd = strtoul(next + 1, &end, 10);

		result = call(&be->traced, SYS_fcntl, fd, F_SETFD, 0, 0, 0);
		if (result)
			return result;
		next = *end == ',' ? end : NULL;
	}
	return exec_ghost(be, ghost);
}

/* Returns 0, or a negative errno. */
static int become(pid_t pid, const struct ghost *ghost)
{
	struct become be = { .memory = -1 };
	char path[64];
	long result;

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/mem", pid);
	be.memory = open(path, O_RDWR | O_CLOEXEC);
	if (be.memory < 0)
		return -errno;
	/* What comes from now on is for the ghost, and the exec resets what is done about it. */
	result = begin_calls(&be.traced, pid, PTRACE_O_TRACEEXEC);
	if (!result)
		result = make_ghost(&be, ghost);
	if (result)
		end_calls(&be.traced);
	(void)ptrace(PTRACE_SETOPTIONS, pid, NULL, 0);
	close(be.memory);
	return (int)result;
}

#endif
