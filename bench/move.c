/*
 * move MEBIBYTES FILE: what is moved. Holds so much memory, wakes each millisecond, and appends to FILE, when
 * it is ready and for each SIGUSR1, the longest time in which it did not run since the line before, in seconds.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WAKE_NS = 1000000 };

static volatile sig_atomic_t asked;

static void hear(int number)
{
	(void)number;
	asked = 1;
}

/* The clock of all nodes. */
static double now(void)
{
	struct timespec time;

	(void)clock_gettime(CLOCK_REALTIME, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void tell(const char *path, double longest)
{
	FILE *file = fopen(path, "a");

	if (!file)
		exit(1);
	(void)fprintf(file, "%.6f\n", longest);
	if (fclose(file))
		exit(1);
}

int main(int argc, char **argv)
{
	const struct timespec wake = { .tv_nsec = WAKE_NS };
	const size_t size = argc == 3 ? strtoull(argv[1], NULL, 10) << 20 : 0;
	double last, longest = 0;

	if (argc != 3)
		return 2;
	if (size) {
		char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				    -1, 0);

		if (memory == MAP_FAILED)
			return 1;
		for (size_t place = 0; place < size; place += PAGE)
			memset(memory + place, 1 + (int)(place / PAGE % 255), PAGE);
	}
	if (signal(SIGUSR1, hear) == SIG_ERR)
		return 1;
	tell(argv[2], 0);
	for (last = now();;) {
		const double time = now();

		longest = time - last > longest ? time - last : longest;
		last = time;
		if (asked) {
			asked = 0;
			tell(argv[2], longest);
			longest = 0;
			last = now();
		}
		(void)nanosleep(&wake, NULL);
	}
}
