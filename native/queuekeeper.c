/*
 * queuekeeper SOCKET: what processes of other nodes do to this node's POSIX message queues.
 *
 * The daemon orders, in the name of a caller, and this process makes the system call: with his IDs where
 * it is opened or removed, after which the descriptor says what he may. What may take for ever is done by a
 * child, a worker; who is to be notified has one, too, for as long as he is. The daemon may be killed:
 * descriptors stay here, and so does what came of an order until that has arrived. Runs as root.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <mqueue.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "keeper.h"
#include "queuekeeper.h"

enum {
	MAX_TEXT = 32 * 1024,
	MAX_GROUPS = 1024,
	MAX_DATA = MAX_TEXT + MAX_GROUPS * sizeof(gid_t),
	MAX_REMEMBERED = 1024,	/* answers for one owner that nobody says have arrived */
	AGAIN_MS = 20,
};

struct packet {
	struct queue_order order;
	unsigned char data[MAX_DATA];	/* groups, and what the order has */
};

struct outcome {
	struct queue_report head;
	unsigned char data[MAX_TEXT];
};

struct end {
	struct end *next;
	uint32_t number, owner;
	int fd;
	int line;		/* to who is notified in its name; -1 */
	pid_t notified;
	bool notes, noted;	/* somebody is to be, or has been */
};

struct task {
	struct task *next;
	struct queue_order order;
	bool done, cancelled;
	int line;		/* to its worker; -1 */
	pid_t worker;
	struct queue_report head;
	size_t length;
	unsigned char *data;
};

static struct task *tasks;	/* the oldest first */
static struct end *ends;
static uint32_t last_end;
static struct outcome outcome;

static int64_t failing(long result)
{
	return result < 0 ? -errno : result;
}

static struct end *find_end(uint32_t owner, uint32_t number)
{
	struct end *end = ends;

	while (end && (end->number != number || end->owner != owner))
		end = end->next;
	return end;
}

/* -- the system calls --------------------------------------------------------------------------- */

/* The saved user ID stays root's: no user can signal who does something in his name. */
static bool become(const struct queue_order *order, const unsigned char *data)
{
	gid_t groups[MAX_GROUPS];

	memcpy(groups, data, order->groups * sizeof(groups[0]));
	return !setgroups(order->groups, groups) && !setresgid((gid_t)-1, order->gid, (gid_t)-1) &&
	       !setresuid((uid_t)-1, order->uid, (uid_t)-1);
}

static void become_root(void)
{
	if (setresuid((uid_t)-1, 0, (uid_t)-1) || setresgid((gid_t)-1, 0, (gid_t)-1) || setgroups(0, NULL))
		abort();
}

static int64_t describe(int fd)
{
	struct queue_about about = { 0 };
	struct mq_attr attributes = { 0 };
	struct stat file;

	if (syscall(SYS_mq_getsetattr, fd, NULL, &attributes) || fstat(fd, &file))
		return -errno;
	if (attributes.mq_msgsize > MAX_TEXT)
		return -EREMOTE;
	about.mode = file.st_mode;
	about.uid = file.st_uid;
	about.gid = file.st_gid;
	about.size = (uint32_t)attributes.mq_msgsize;
	memcpy(outcome.data, &about, sizeof(about));
	return sizeof(about);
}

static int64_t open_end(const struct queue_order *order, const char *name, size_t *length)
{
	const int flags = (int)order->value & O_ACCMODE;
	const int fd = (int)syscall(SYS_mq_open, name, flags | O_CLOEXEC, 0, NULL);
	int64_t described;
	struct end *end;

	if (fd < 0)
		return -errno;
	described = describe(fd);
	end = described < 0 ? NULL : calloc(1, sizeof(*end));
	if (!end) {
		close(fd);
		return described < 0 ? described : -ENOMEM;
	}
	*end = (struct end){ .next = ends, .number = ++last_end, .owner = order->owner, .fd = fd, .line = -1 };
	ends = end;
	*length = (size_t)described;
	return end->number;
}

/* Names are as the kernel has them, without a slash. */
static int64_t do_named(const struct packet *packet, size_t length, size_t *out)
{
	const struct queue_order *order = &packet->order;
	const size_t before = order->groups * sizeof(gid_t);
	char name[NAME_MAX + 2] = "";
	int64_t result = -EPERM;

	if (order->groups > MAX_GROUPS || length < before)
		return -EINVAL;
	if (length - before >= sizeof(name))
		return -ENAMETOOLONG;
	memcpy(name, packet->data + before, length - before);
	if (become(order, packet->data))
		result = order->kind == QUEUE_OPEN ? open_end(order, name, out) :
						     failing(syscall(SYS_mq_unlink, name));
	become_root();
	return result;
}

static int64_t do_send(const struct queue_order *order, int fd, const void *text, size_t length,
		       const struct timespec *until)
{
	return failing(syscall(SYS_mq_timedsend, fd, text, length, order->value, until));
}

static int64_t do_receive(const struct queue_order *order, int fd, const struct timespec *until)
{
	const size_t room = order->size < MAX_TEXT ? order->size : MAX_TEXT;

	return failing(syscall(SYS_mq_timedreceive, fd, outcome.data, room, &outcome.head.value, until));
}

/* Sends or receives, and waits for that if `wait`; else it has timed out. The text received is in `outcome`. */
static int64_t transfer(const struct queue_order *order, int fd, const void *text, size_t length, bool wait)
{
	const struct timespec at_once = { 0 };
	const struct timespec then = { .tv_sec = order->sec, .tv_nsec = order->nsec };
	const struct timespec *until = !wait ? &at_once : order->sec < 0 ? NULL : &then;

	outcome.head.value = 0;
	return order->kind == QUEUE_SEND ? do_send(order, fd, text, length, until) : do_receive(order, fd, until);
}

/* -- children ----------------------------------------------------------------------------------- */

enum { QUEUE_FD = 0, LINE = 1 };	/* in this order they are closed when it ends */

static void keep_only(int line, int fd)
{
	const int held = fcntl(line, F_DUPFD, 2);

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (held < 0 || dup2(fd, QUEUE_FD) < 0 || dup2(held, LINE) < 0)
		_exit(1);
	(void)close_range(2, UINT_MAX, 0);
}

static void say_outcome(size_t length)
{
	(void)!send(LINE, &outcome, sizeof(outcome.head) + length, MSG_NOSIGNAL);
}

static _Noreturn void be_worker(const struct queue_order *order, const void *text, size_t length)
{
	const int64_t result = transfer(order, QUEUE_FD, text, length, true);

	outcome.head.result = result;
	say_outcome(order->kind == QUEUE_RECEIVE && result > 0 ? (size_t)result : 0);
	_exit(0);
}

/* Says first whether it will be, and then that it has been. Its own end is that of it. */
static _Noreturn void be_notified(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };
	sigset_t waited;
	siginfo_t about;

	sigemptyset(&waited);
	sigaddset(&waited, SIGUSR2);
	(void)sigprocmask(SIG_BLOCK, &waited, NULL);
	outcome.head.result = failing(syscall(SYS_mq_notify, QUEUE_FD, &event));
	say_outcome(0);
	if (outcome.head.result < 0)
		_exit(0);
	while (sigwaitinfo(&waited, &about) != SIGUSR2 || about.si_code != SI_MESGQ)
		;
	outcome.head.result = 1;
	say_outcome(0);
	_exit(0);
}

/* A child with a line to it and `fd`; returns 0 in the child, -1 if there is none. */
static pid_t make_child(int fd, int *line)
{
	int pair[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -1;
	child = fork();
	if (!child) {
		keep_only(pair[1], fd);
		return 0;
	}
	close(pair[1]);
	if (child < 0)
		close(pair[0]);
	else
		*line = pair[0];
	return child;
}

/* -- what the daemon hears ---------------------------------------------------------------------- */

static void answer(const struct task *task)
{
	keeper_say(&task->head, sizeof(task->head), task->data, task->length, -1);
}

static void finish(struct task *task, int64_t result, uint32_t value, const void *data, size_t length)
{
	task->done = true;
	task->head = (struct queue_report){
		.kind = QUEUE_RESULT,
		.owner = task->order.owner,
		.id = task->order.id,
		.result = result,
		.value = value,
	};
	task->data = length ? malloc(length) : NULL;
	if (task->data) {
		memcpy(task->data, data, length);
		task->length = length;
	}
	if (task->line >= 0)
		close(task->line);
	task->line = -1;
	answer(task);
}

static void hear_worker(struct task *task)
{
	const ssize_t got = recv(task->line, &outcome, sizeof(outcome), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got < (ssize_t)sizeof(outcome.head))
		finish(task, -EINTR, 0, NULL, 0);
	else
		finish(task, outcome.head.result, outcome.head.value, outcome.data,
		       (size_t)got - sizeof(outcome.head));
}

static struct task **find_task(uint32_t owner, uint64_t id)
{
	struct task **place = &tasks;

	while (*place && ((*place)->order.owner != owner || (*place)->order.id != id))
		place = &(*place)->next;
	return place;
}

static void forget(struct task **place)
{
	struct task *task = *place;

	*place = task->next;
	if (task->line >= 0) {
		(void)kill(task->worker, SIGKILL);
		close(task->line);
	}
	free(task->data);
	free(task);
}

static void make_room(uint32_t owner)
{
	struct task **oldest = NULL;
	int count = 0;

	for (struct task **place = &tasks; *place; place = &(*place)->next) {
		if (!(*place)->done || (*place)->order.owner != owner)
			continue;
		oldest = oldest ? oldest : place;
		count++;
	}
	if (count > MAX_REMEMBERED)
		forget(oldest);
}

/* -- being notified ----------------------------------------------------------------------------- */

/* Whoever awaits it hears that it has come, or (0) that it will not. */
static void answer_awaiting(const struct end *end, int64_t result)
{
	for (struct task *task = tasks; task; task = task->next)
		if (!task->done && task->order.kind == QUEUE_AWAIT && task->order.end == end->number)
			finish(task, result, 0, NULL, 0);
}

static void end_notes(struct end *end)
{
	if (end->line < 0)
		return;
	(void)kill(end->notified, SIGKILL);
	close(end->line);
	end->line = -1;
}

static void hear_notified(struct end *end)
{
	const ssize_t got = recv(end->line, &outcome, sizeof(outcome), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	end->notes = false;
	end->noted = got >= (ssize_t)sizeof(outcome.head) && outcome.head.result == 1;
	end_notes(end);
	answer_awaiting(end, end->noted);
}

/* Waits for the child's first word: that comes at once. */
static int64_t begin_notes(struct end *end)
{
	end->notified = make_child(end->fd, &end->line);
	if (!end->notified)
		be_notified();
	if (end->notified < 0)
		return -ENOMEM;
	if (recv(end->line, &outcome, sizeof(outcome), 0) < (ssize_t)sizeof(outcome.head))
		outcome.head.result = -ENOMEM;
	end->notes = !outcome.head.result;
	end->noted = false;
	if (!end->notes)
		end_notes(end);
	return outcome.head.result;
}

static int64_t set_notes(struct end *end, uint32_t wanted)
{
	/* By another descriptor of the same queue its own process has been registered already. */
	if (wanted)
		return end->notes ? -EBUSY : begin_notes(end);
	if (end->notes) {
		end->notes = false;
		/* The kernel takes it back when the child is gone; until then it would be busy. */
		(void)kill(end->notified, SIGKILL);
		(void)!recv(end->line, &outcome, sizeof(outcome), 0);
		end_notes(end);
		answer_awaiting(end, 0);
	}
	return 0;
}

/* -- orders ------------------------------------------------------------------------------------- */

static void begin_transfer(struct task *task, const struct end *end, const struct packet *packet, size_t length)
{
	int64_t result = transfer(&task->order, end->fd, packet->data, length, false);

	if (result == -ETIMEDOUT && task->order.flags & QUEUE_NONBLOCK)
		result = -EAGAIN;
	if (result != -ETIMEDOUT) {
		finish(task, result, outcome.head.value, outcome.data,
		       task->order.kind == QUEUE_RECEIVE && result > 0 ? (size_t)result : 0);
		return;
	}
	task->worker = make_child(end->fd, &task->line);
	if (!task->worker)
		be_worker(&task->order, packet->data, length);
	if (task->worker < 0)
		finish(task, -ENOMEM, 0, NULL, 0);
}

static short look(const struct end *end, uint32_t events)
{
	struct pollfd poller = { .fd = end->fd, .events = (short)events };

	return poll(&poller, 1, 0) > 0 ? poller.revents : 0;
}

static void do_task(struct task *task, const struct packet *packet, size_t length)
{
	struct end *end = find_end(task->order.owner, task->order.end);
	struct mq_attr attributes = { 0 };
	size_t out = 0;
	int64_t result = -EIO;

	switch (task->order.kind) {
	case QUEUE_OPEN:
	case QUEUE_UNLINK:
		result = do_named(packet, length, &out);
		finish(task, result, 0, outcome.data, out);
		return;
	default:
		if (!end || task->order.groups) {
			finish(task, -EBADF, 0, NULL, 0);
			return;
		}
	}
	switch (task->order.kind) {
	case QUEUE_SEND:
	case QUEUE_RECEIVE:
		begin_transfer(task, end, packet, length);
		return;
	case QUEUE_GETATTR:
		result = failing(syscall(SYS_mq_getsetattr, end->fd, NULL, &attributes));
		finish(task, result, 0, &attributes, result < 0 ? 0 : sizeof(attributes));
		return;
	case QUEUE_WATCH:
		result = look(end, task->order.value);
		if (result || task->order.flags & QUEUE_NONBLOCK)
			finish(task, result, 0, NULL, 0);
		return;
	case QUEUE_NOTIFY:
		finish(task, set_notes(end, task->order.value), 0, NULL, 0);
		return;
	case QUEUE_AWAIT:
		if (!end->notes)
			finish(task, end->noted, 0, NULL, 0);
		return;
	default:
		finish(task, -EINVAL, 0, NULL, 0);
	}
}

static void begin(const struct packet *packet, size_t length)
{
	const struct queue_order *order = &packet->order;
	struct task **place = find_task(order->owner, order->id), *task = *place;

	/* The daemon that asked for it first has died. */
	if (task) {
		if (task->done)
			answer(task);
		return;
	}
	task = calloc(1, sizeof(*task));
	if (!task)
		return;
	task->order = *order;
	task->line = -1;
	*place = task;
	make_room(order->owner);
	do_task(task, packet, length);
}

static void cancel(uint32_t owner, uint64_t id)
{
	struct task *task = *find_task(owner, id);

	if (!task || task->done)
		return;
	if (task->line < 0) {
		finish(task, -EINTR, 0, NULL, 0);
		return;
	}
	/* It may have got what it waits for: then that is the answer. */
	task->cancelled = true;
	(void)kill(task->worker, SIGUSR1);
}

static void close_end(struct end **place)
{
	struct end *end = *place;

	*place = end->next;
	end->notes = false;
	answer_awaiting(end, 0);
	end_notes(end);
	close(end->fd);
	free(end);
}

static void drop(uint32_t owner)
{
	for (struct task **place = &tasks; *place;)
		if ((*place)->order.owner == owner)
			forget(place);
		else
			place = &(*place)->next;
	for (struct end **place = &ends; *place;)
		if ((*place)->owner == owner)
			close_end(place);
		else
			place = &(*place)->next;
}

static void say(uint32_t kind, uint32_t owner, uint64_t id)
{
	const struct queue_report head = { .kind = kind, .owner = owner, .id = id };

	keeper_say(&head, sizeof(head), NULL, 0, -1);
}

static void obey(const struct packet *packet, size_t length)
{
	const struct queue_order *order = &packet->order;
	struct task **task;

	switch (order->kind) {
	case QUEUE_CANCEL:
		cancel(order->owner, order->id);
		break;
	case QUEUE_DONE:
		task = find_task(order->owner, order->id);
		if (*task && (*task)->done)
			forget(task);
		break;
	case QUEUE_CLOSE:
		for (struct end **place = &ends; *place; place = &(*place)->next)
			if ((*place)->number == order->end && (*place)->owner == order->owner) {
				close_end(place);
				break;
			}
		say(QUEUE_RESULT, order->owner, order->id);
		break;
	case QUEUE_DROP:
		drop(order->owner);
		break;
	default:
		begin(packet, length);
	}
}

/* -- the daemon --------------------------------------------------------------------------------- */

static void take_daemon(void)
{
	if (!keeper_take_daemon())
		return;
	for (const struct end *end = ends; end; end = end->next)
		say(QUEUE_HELD, end->owner, end->number);
	say(QUEUE_TOLD, 0, 0);
}

static void hear_daemon(void)
{
	static struct packet packet;
	const ssize_t got = recv(keeper_daemon, &packet, sizeof(packet), 0);

	if (got <= 0)
		keeper_lose_daemon();
	else if ((size_t)got >= sizeof(packet.order))
		obey(&packet, (size_t)got - sizeof(packet.order));
}

/* -- waiting ------------------------------------------------------------------------------------ */

/* What happens to who: a worker's line, a queue that is watched, or who is notified. */
struct waiter {
	struct task *task;
	struct end *end;
};

struct polled {
	struct pollfd *pollers;
	struct waiter *waiting;
	size_t room, count;
	bool impatient;		/* somebody who is to end has not said so */
};

static bool add_waiter(struct polled *polled, struct waiter waiter, int fd, short events)
{
	if (KEEPER_OTHERS + polled->count >= polled->room) {
		const size_t room = 2 * polled->room;
		void *pollers = realloc(polled->pollers, room * sizeof(*polled->pollers));
		void *waiting;

		if (!pollers)
			return false;
		polled->pollers = pollers;
		waiting = realloc(polled->waiting, room * sizeof(*polled->waiting));
		if (!waiting)
			return false;
		polled->waiting = waiting;
		polled->room = room;
	}
	polled->waiting[polled->count] = waiter;
	polled->pollers[KEEPER_OTHERS + polled->count++] = (struct pollfd){ .fd = fd, .events = events };
	return true;
}

static void list_waiting(struct polled *polled)
{
	polled->impatient = false;
	polled->count = 0;
	for (struct task *task = tasks; task; task = task->next) {
		const struct end *end = find_end(task->order.owner, task->order.end);

		if (task->done)
			continue;
		polled->impatient |= task->cancelled;
		if (task->line >= 0)
			(void)add_waiter(polled, (struct waiter){ .task = task }, task->line, POLLIN);
		else if (end && task->order.kind == QUEUE_WATCH)
			(void)add_waiter(polled, (struct waiter){ .task = task }, end->fd, (short)task->order.value);
	}
	for (struct end *end = ends; end; end = end->next)
		if (end->line >= 0)
			(void)add_waiter(polled, (struct waiter){ .end = end }, end->line, POLLIN);
}

static void serve(const struct waiter *waiter, short happened)
{
	if (waiter->end)
		hear_notified(waiter->end);
	else if (waiter->task->line >= 0)
		hear_worker(waiter->task);
	else
		finish(waiter->task, happened, 0, NULL, 0);
}

static void step(struct polled *polled)
{
	int happened;

	list_waiting(polled);
	happened = keeper_poll(polled->pollers, KEEPER_OTHERS + polled->count, polled->impatient ? AGAIN_MS : -1);
	/* The signal comes to nothing if the call has not begun. */
	for (size_t i = 0; !happened && i < polled->count; i++)
		if (polled->waiting[i].task && polled->waiting[i].task->cancelled)
			(void)kill(polled->waiting[i].task->worker, SIGUSR1);
	if (happened <= 0)
		return;
	for (size_t i = 0; i < polled->count; i++)
		if (polled->pollers[KEEPER_OTHERS + i].revents)
			serve(&polled->waiting[i], polled->pollers[KEEPER_OTHERS + i].revents);
	if (polled->pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (polled->pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

static void wake(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	/* Without SA_RESTART. */
	const struct sigaction waking = { .sa_handler = wake };
	struct polled polled = { .room = 64 };

	if (argc != 2) {
		(void)fprintf(stderr, "usage: queuekeeper SOCKET\n");
		return 2;
	}
	(void)signal(SIGCHLD, SIG_IGN);
	(void)sigaction(SIGUSR1, &waking, NULL);
	last_end = keeper_first_number();
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	polled.waiting = calloc(polled.room, sizeof(*polled.waiting));
	if (!polled.pollers || !polled.waiting || !keeper_begin("queuekeeper", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
