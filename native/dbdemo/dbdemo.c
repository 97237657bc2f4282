/*
 * dbdemo FILE: "processes" the records of a file, a line each, on whichever node of the cluster it is told.
 *
 *	1-9	move to that node, and go on with the next record
 *	Enter	move to another node every few records, until a key is pressed
 *	q	quit
 *
 * A move is one call, ssi_migrate(). Of the terminal and the file nothing is said here: what a process has
 * comes along. Keys are read, and records printed, on the terminal where it was started; and which record is
 * next it knows only from the offset of the open file.
 *
 *	cc -o dbdemo dbdemo.c -lssi
 */
#include <errno.h>
#include <poll.h>
#include <ssi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_BYTES = 256, MOVES_AFTER = 3, ROOM = 128 };

static struct termios usual_settings;

static void restore_terminal(void)
{
	(void)tcsetattr(STDIN_FILENO, TCSANOW, &usual_settings);
}

/* Has the terminal give each key at once, and not show it. */
static void begin_keys(void)
{
	struct termios settings;

	if (tcgetattr(STDIN_FILENO, &usual_settings))
		return; /* no terminal: then there are no keys */
	(void)atexit(restore_terminal);
	settings = usual_settings;
	settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	(void)tcsetattr(STDIN_FILENO, TCSANOW, &settings);
}

/* The key that has been pressed, 0 if none has. */
static char read_key(void)
{
	struct pollfd keys = { .fd = STDIN_FILENO, .events = POLLIN };
	char key;

	if (poll(&keys, 1, 0) != 1 || read(STDIN_FILENO, &key, 1) != 1)
		return 0;
	return key;
}

/* A second of hard work. */
static void compute(void)
{
	struct timespec begin, now;

	(void)clock_gettime(CLOCK_MONOTONIC, &begin);
	do
		(void)clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 1000);
}

/* Why it stays, as the node says it. */
static void print_reasons(void)
{
	char line[RECORD_BYTES];
	FILE *reasons = fopen("/proc/self/cantmove", "r");

	while (reasons && fgets(line, sizeof(line), reasons))
		printf("  %s", line);
	if (reasons)
		(void)fclose(reasons);
}

static void move_to(int node)
{
	if (!ssi_migrate(node))
		return; /* and this is on that node already */
	printf("cannot move to node %d: %s\n", node, strerror(errno));
	if (errno == EBUSY)
		print_reasons();
}

/* One of the other nodes that are up; this one if there are none. */
static int choose_node(void)
{
	clusternode_t nodes[ROOM];
	transid_t transition;
	const int here = clusternode_num(), count = cluster_membership(&transition, ROOM, nodes);
	int node = here;

	while (count > 1 && node == here)
		node = (int)nodes[rand() % count];
	return node;
}

int main(int argc, char **argv)
{
	char record[RECORD_BYTES];
	bool wanders = false;
	FILE *file;

	if (argc != 2 || !cluster_ssiconfig()) {
		(void)fprintf(stderr, "usage, on a node of a cluster: dbdemo FILE\n");
		return 2;
	}
	file = fopen(argv[1], "r");
	if (!file || setvbuf(file, NULL, _IONBF, 0) || !fgets(record, sizeof(record), file)) {
		(void)fprintf(stderr, "dbdemo: %s: no records\n", argv[1]);
		return 1;
	}
	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	srand((unsigned int)time(NULL));
	begin_keys();
	for (int count = 1;; count++) {
		char key;

		printf("node %d: %s", clusternode_num(), record);
		compute();
		key = read_key();
		if (key == 'q')
			break;
		if (key)
			wanders = key == '\n';
		if (key >= '1' && key <= '9')
			move_to(key - '0');
		else if (wanders && count % MOVES_AFTER == 0)
			move_to(choose_node());
		while (!fgets(record, sizeof(record), file))
			rewind(file);
	}
	(void)fclose(file);
	return 0;
}
