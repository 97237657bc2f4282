/*
 * forks COUNT: makes COUNT children, one after the other, and prints the lowest and the highest of
 * their PIDs and how often the numbers began again.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int end(void *unused)
{
	(void)unused;
	_exit(0);
}

int main(int argc, char **argv)
{
	static char stack[65536] __attribute__((aligned(16)));
	long count = argc > 1 ? atol(argv[1]) : 1;
	int low = INT_MAX, high = 0, again = 0, last = 0;

	while (count-- > 0) {
		/* The memory is shared: thousands a second. */
		int pid = clone(end, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);

		if (pid < 0 || waitpid(pid, NULL, 0) != pid) {
			perror("forks");
			return 1;
		}
		low = pid < low ? pid : low;
		high = pid > high ? pid : high;
		again += pid < last;
		last = pid;
	}
	printf("%d %d %d\n", low, high, again);
	return 0;
}
