/*
 * calls COUNT PID: prints how many nanoseconds each of some system calls takes, medians of COUNT;
 * PID is a process to which signal 0 is sent.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int pid, file;
static char buffer[64];

static void call_getpid(void)
{
	(void)syscall(SYS_getpid);
}

static void call_read(void)
{
	(void)!pread(file, buffer, sizeof(buffer), 0);
}

static void call_open(void)
{
	close(open("/dev/null", O_RDONLY));
}

static void call_fork(void)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	waitpid(child, NULL, 0);
}

static void call_own_kill(void)
{
	(void)kill(getpid(), 0);
}

static void call_kill(void)
{
	if (kill(pid, 0)) {
		perror("kill");
		exit(1);
	}
}

static const struct {
	const char *name;
	void (*call)(void);
	int batch;
} KINDS[] = {
	{ "getpid", call_getpid, 50 },
	{ "read", call_read, 50 },
	{ "open", call_open, 20 },
	{ "fork", call_fork, 1 },
	{ "own", call_own_kill, 50 },
	{ "kill", call_kill, 1 },
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[1]) : 0;
	double *took = calloc((size_t)count + 1, sizeof(double));

	pid = argc > 2 ? atoi(argv[2]) : 0;
	file = open("/proc/self/exe", O_RDONLY);
	for (size_t i = 0; took && i < sizeof(KINDS) / sizeof(KINDS[0]); i++) {
		if (!pid && KINDS[i].call == call_kill)
			continue;
		for (int n = 0; n < count; n++) {
			double start = now();

			for (int k = 0; k < KINDS[i].batch; k++)
				KINDS[i].call();
			took[n] = (now() - start) / KINDS[i].batch;
		}
		qsort(took, (size_t)count, sizeof(double), compare);
		printf("%s %.0f\n", KINDS[i].name, took[count / 2]);
	}
	return 0;
}
