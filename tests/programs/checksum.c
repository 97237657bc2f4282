/*
 * Four threads that go over a megabyte each, round by round; after each round one of them says its
 * number and a checksum of all. At SIGTERM, or after as many rounds as the argument says, it ends;
 * without an argument it rests between them.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS = 4, WORDS = 1 << 17 };

static uint64_t memory[THREADS][WORDS];
static __thread uint64_t sum;
static uint64_t sums[THREADS];
static pthread_barrier_t barrier;
static volatile sig_atomic_t told;
static unsigned int last;
static const struct timespec rest = { .tv_nsec = 20000000 };

static void tell(int number)
{
	(void)number;
	told = 1;
}

/* Each word is made of the one before it, and of another thread's of the round before. */
static void go_over(unsigned int self)
{
	const uint64_t *other = memory[(self + 1) % THREADS];

	for (unsigned int i = 0; i < WORDS; i++) {
		sum ^= sum << 13;
		sum ^= sum >> 7;
		sum ^= sum << 17;
		sum += other[(i * 7919U) % WORDS];
	}
}

static void *work(void *argument)
{
	const unsigned int self = (unsigned int)(uintptr_t)argument;

	sum = self + 1;
	for (unsigned int round = 1;; round++) {
		uint64_t all = 0;

		go_over(self);
		sums[self] = sum;
		pthread_barrier_wait(&barrier);
		for (unsigned int i = 0; i < THREADS; i++)
			all = all * 31 + sums[i];
		if (self == 0) {
			printf("%u %016llx\n", round, (unsigned long long)all);
			if (told || round == last)
				exit(0);
			if (!last)
				(void)nanosleep(&rest, NULL);
		}
		memory[self][all % WORDS] += sum;
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1)
		last = (unsigned int)strtoul(argv[1], NULL, 10);
	(void)signal(SIGTERM, tell);
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (unsigned int i = 1; i < THREADS; i++)
		if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)i))	// NOLINT
			return 1;
	(void)work(NULL);
	return 0;
}
