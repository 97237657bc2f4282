/*
 * What the end of a thread, or its exec, would write to its memory: nothing, when somebody else keeps that.
 */
#ifndef SSI_LOOSE_H
#define SSI_LOOSE_H

#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "traced.h"

/* As linux/futex.h has it. */
enum { ROBUST_SIZE = 24 };

/* Older headers have no name for it. */
#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

/* A thread, and what the kernel does to its memory when it ends or execs: it has others know that. */
struct loose {
	struct traced traced;
	uint64_t word, robust;
};

struct looses {
	struct loose *all;
	size_t count;
};

/* Returns the address of the word that the kernel clears. It says so only to the thread, in its memory: below
 * what is on its stack, where all is as it was behind that. Returns 0, or a negative errno. */
static int ask_word(struct loose *thread)
{
	const pid_t pid = thread->traced.pid;
	const uint64_t place = find_room(&thread->traced);
	struct iovec there = { .iov_base = (void *)(uintptr_t)place, .iov_len = sizeof(uint64_t) }; // NOLINT
	uint64_t was;
	struct iovec own = { .iov_base = &was, .iov_len = sizeof(was) };
	struct iovec word = { .iov_base = &thread->word, .iov_len = sizeof(thread->word) };
	long result;

	if (process_vm_readv(pid, &own, 1, &there, 1, 0) != sizeof(was))
		return -errno;
	result = call(&thread->traced, SYS_prctl, PR_GET_TID_ADDRESS, place, 0, 0, 0);
	if (!result && process_vm_readv(pid, &word, 1, &there, 1, 0) != sizeof(was))
		result = -errno;
	(void)process_vm_writev(pid, &own, 1, &there, 1, 0);
	return (int)result;
}

static int loosen_thread(struct loose *thread, pid_t pid)
{
	size_t size;
	int result = begin_calls(&thread->traced, pid, 0);

	if (result)
		return result;
	if (syscall(SYS_get_robust_list, pid, &thread->robust, &size))
		result = -errno;
	if (!result)
		result = ask_word(thread);
	if (!result)
		result = (int)call(&thread->traced, SYS_set_robust_list, 0, ROBUST_SIZE, 0, 0, 0);
	if (!result)
		(void)call(&thread->traced, SYS_set_tid_address, 0, 0, 0, 0, 0);
	end_calls(&thread->traced);
	return result;
}

/* The process runs on after all. */
static void tie(struct looses *threads)
{
	for (size_t i = 0; i < threads->count; i++) {
		struct loose *thread = &threads->all[i];

		if (!begin_calls(&thread->traced, thread->traced.pid, 0)) {
			(void)call(&thread->traced, SYS_set_robust_list, thread->robust, ROBUST_SIZE, 0, 0, 0);
			(void)call(&thread->traced, SYS_set_tid_address, thread->word, 0, 0, 0, 0);
			end_calls(&thread->traced);
		}
	}
	free(threads->all);
	*threads = (struct looses){ .all = NULL };
}

/* Has the end of a process's threads change nothing in the memory that is kept. Returns 0, or a negative errno. */
static int loosen(pid_t pid, struct looses *threads)
{
	uint64_t instruction = 0;
	struct dirent *entry;
	char path[64];
	int result = 0;
	DIR *folder;

	(void)snprintf(path, sizeof(path), REAL_PROC "/%d/task", pid);
	folder = opendir(path);
	if (!folder)
		return -errno;
	while (!result && (entry = readdir(folder))) {
		const pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
		struct loose *more = thread ? reallocarray(threads->all, threads->count + 1, sizeof(*more)) : NULL;

		if (!thread)
			continue;
		if (!more) {
			result = -ENOMEM;
			break;
		}
		threads->all = more;
		more += threads->count;
		*more = (struct loose){ .traced.instruction = instruction };
		result = loosen_thread(more, thread);
		instruction = more->traced.instruction;
		threads->count += !result;
	}
	(void)closedir(folder);
	if (result)
		tie(threads);
	return result;
}

#endif
