/*
 * queuekeeper SOCKET: what processes of other nodes do to this node's POSIX message queues.
 *
 * The daemon orders, in the name of a caller, and this process makes the system call: with his IDs where
 * it is opened or removed, after which the descriptor says what he may. What may take for ever is done by a
 * child, a worker; who is to be notified has one, too, for as long as he is. The daemon may be killed:
 * descriptors stay here, and so does what came of an order until that has arrived. What a queue is now goes
 * along with each answer that has made another of it, for whoever makes it anew when this node is dead.
 * Runs as root.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <mqueue.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "keeper.h"
#include "queuekeeper.h"

enum {
	MAX_TEXT = 32 * 1024,
	MAX_GROUPS = 1024,
	MAX_KEPT = 96 * 1024,	/* a snapshot */
	MAX_DATA = MAX_KEPT + MAX_GROUPS * sizeof(gid_t),
	MAX_REMEMBERED = 1024,	/* answers for one owner that nobody says have arrived */
	AGAIN_MS = 20,
	HEAR_MS = 5,
	SETTLE_MS = 1000,
};

static const uint32_t VOID = UINT32_MAX;	/* messages of a snapshot: too large to be kept */

/* image/kernel/patches/mqueue-shared.patch */
struct mqueue_look {
	uint64_t room;
	uint32_t size;
	uint32_t waiting, messages;
	uint32_t notified;
};

#define MQUEUE_LOOK _IOWR('q', 1, struct mqueue_look)
#define MQUEUE_SHARE _IO('q', 2)

struct packet {
	struct queue_order order;
	unsigned char data[MAX_DATA];	/* groups, and what the order has */
};

struct outcome {
	struct queue_report head;
	unsigned char data[MAX_TEXT];
};

/* One that has been opened for others, for as long as somebody can open it or has it open. */
struct queue {
	struct queue *next;
	uint64_t id, inode;
	int fd;
	bool removed;
	char name[NAME_MAX + 1];
};

struct end {
	struct end *next;
	struct queue *queue;
	uint32_t number, owner;
	uint32_t access;
	int fd;
	int line;		/* to who is notified in its name; -1 */
	pid_t notified;
	bool notes, noted;	/* somebody is to be, or has been */
};

struct task {
	struct task *next;
	struct queue_order order;
	uint64_t queue;		/* what it is done to; 0: none */
	bool done, told, cancelled;
	int line;		/* to its worker; -1 */
	pid_t worker;
	struct queue_report head;
	unsigned char *data;
};

static struct task *tasks;	/* the oldest first */
static struct queue *queues;
static struct end *ends;
static uint32_t last_end;
static uint64_t version;
static struct outcome outcome;
static unsigned char kept[MAX_KEPT];
static size_t kept_length;

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

static struct queue *find_queue(uint64_t id)
{
	struct queue *queue = queues;

	while (queue && queue->id != id)
		queue = queue->next;
	return queue;
}

static struct queue *find_inode(uint64_t inode)
{
	struct queue *queue = queues;

	while (queue && queue->inode != inode)
		queue = queue->next;
	return queue;
}

static void say(uint32_t kind, uint32_t owner, uint64_t id)
{
	const struct queue_report head = { .kind = kind, .owner = owner, .id = id };

	keeper_say(&head, sizeof(head), NULL, 0, -1);
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

/* From now on the kernel tells of what this node's own processes do to it. */
static struct queue *add_queue(int fd, uint64_t inode, uint64_t id, const char *name)
{
	struct queue *queue = calloc(1, sizeof(*queue));

	if (!queue)
		return NULL;
	*queue = (struct queue){ .next = queues, .id = id, .inode = inode, .fd = dup(fd) };
	(void)snprintf(queue->name, sizeof(queue->name), "%s", name);
	if (queue->fd < 0 || fcntl(queue->fd, F_SETFD, FD_CLOEXEC) || ioctl(queue->fd, MQUEUE_SHARE, 1)) {
		if (queue->fd >= 0)
			close(queue->fd);
		free(queue);
		return NULL;
	}
	queues = queue;
	say(QUEUE_SHARED, 0, id);
	return queue;
}

static struct queue *share_queue(int fd, const char *name)
{
	struct queue *queue;
	struct stat file;
	uint64_t id = 0;

	if (fstat(fd, &file))
		return NULL;
	queue = find_inode(file.st_ino);
	if (queue)
		return queue;
	if (getrandom(&id, sizeof(id), 0) != sizeof(id))
		return NULL;
	return add_queue(fd, file.st_ino, id >> 1 | 1, name);
}

static void update_removed(struct queue *queue)
{
	struct stat file;

	queue->removed = fstat(queue->fd, &file) || !file.st_nlink;
}

/* Without its name and without ends it is this node's own processes', if anybody's. Returns whether it is gone. */
static bool end_queue(struct queue *queue)
{
	struct queue **place = &queues;

	update_removed(queue);
	for (const struct end *end = ends; end; end = end->next)
		if (end->queue == queue)
			return false;
	if (!queue->removed)
		return false;
	while (*place != queue)
		place = &(*place)->next;
	*place = queue->next;
	(void)ioctl(queue->fd, MQUEUE_SHARE, 0);
	close(queue->fd);
	say(QUEUE_GONE, 0, queue->id);
	free(queue);
	return true;
}

static struct end *add_end(struct queue *queue, int fd, uint32_t owner, uint32_t number, uint32_t access)
{
	struct end *end = calloc(1, sizeof(*end));

	if (!end)
		return NULL;
	*end = (struct end){
		.next = ends,
		.queue = queue,
		.number = number,
		.owner = owner,
		.access = access,
		.fd = fd,
		.line = -1,
	};
	ends = end;
	return end;
}

static uint32_t next_end(uint32_t owner)
{
	do
		last_end++;
	while (!last_end || find_end(owner, last_end));
	return last_end;
}

static int64_t open_end(const struct queue_order *order, const char *name, size_t *length)
{
	const int flags = (int)order->value & O_ACCMODE;
	const int fd = (int)syscall(SYS_mq_open, name, flags | O_CLOEXEC, 0, NULL);
	struct queue *queue = NULL;
	struct end *end = NULL;
	int64_t described;

	if (fd < 0)
		return -errno;
	described = describe(fd);
	/* What is shared is root's affair. */
	become_root();
	if (described >= 0)
		queue = share_queue(fd, name);
	if (queue)
		end = add_end(queue, fd, order->owner, next_end(order->owner), (uint32_t)flags);
	if (!end) {
		close(fd);
		return described < 0 ? described : -ENOMEM;
	}
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

static bool makes_another(const struct task *task)
{
	switch (task->order.kind) {
	case QUEUE_OPEN:
	case QUEUE_UNLINK:
	case QUEUE_SEND:
	case QUEUE_RECEIVE:
	case QUEUE_NOTIFY:
		return task->head.result >= 0;
	default:
		return false;
	}
}

/* With the first `snapshot` bytes of what is kept. */
static void say_result(const struct queue_report *head, const void *data, size_t snapshot)
{
	static unsigned char room[MAX_TEXT + MAX_KEPT];

	if (head->length)
		memcpy(room, data, head->length);
	memcpy(room + head->length, kept, snapshot);
	keeper_say(head, sizeof(*head), room, head->length + snapshot, -1);
}

static void answer(struct task *task, size_t snapshot)
{
	task->told = true;
	say_result(&task->head, task->data, snapshot);
}

/* It is answered later, with others of that queue. */
static void end_task(struct task *task, int64_t result, uint32_t value, const void *data, size_t length)
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
		task->head.length = (uint32_t)length;
	}
	if (task->line >= 0)
		close(task->line);
	task->line = -1;
}

static void hear_worker(struct task *task)
{
	const ssize_t got = recv(task->line, &outcome, sizeof(outcome), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got < (ssize_t)sizeof(outcome.head))
		end_task(task, -EINTR, 0, NULL, 0);
	else
		end_task(task, outcome.head.result, outcome.head.value, outcome.data,
			 (size_t)got - sizeof(outcome.head));
}

/* -- snapshots ---------------------------------------------------------------------------------- */

static bool keep(const void *data, size_t length)
{
	if (length > sizeof(kept) - kept_length)
		return false;
	if (length)
		memcpy(kept + kept_length, data, length);
	kept_length += length;
	return true;
}

static bool is_among(uint32_t pid, const unsigned char *pids, uint32_t count)
{
	uint32_t one;

	for (uint32_t i = 0; i < count; i++) {
		memcpy(&one, pids + i * sizeof(one), sizeof(one));
		if (one == pid)
			return true;
	}
	return false;
}

/* Hears a worker who waits no more, or not yet, if there is one. */
static bool hear_others(const struct queue *queue, const unsigned char *pids, uint32_t count)
{
	for (struct task *task = tasks; task; task = task->next) {
		struct pollfd poller = { .fd = task->line, .events = POLLIN };

		if (task->line < 0 || task->queue != queue->id || is_among((uint32_t)task->worker, pids, count))
			continue;
		if (poll(&poller, 1, HEAR_MS) > 0)
			hear_worker(task);
		return true;
	}
	return false;
}

/*
 * Who has been given a message has it, and the queue is without it: so it is heard first what came of
 * all who waited.
 */
static bool keep_messages(const struct queue *queue, struct queue_snapshot *head, uint32_t *notified)
{
	static unsigned char room[MAX_KEPT];
	struct mqueue_look look;
	int got, patience = SETTLE_MS / HEAR_MS;

	do {
		look = (struct mqueue_look){ .room = (uintptr_t)room, .size = sizeof(room) };
		got = ioctl(queue->fd, MQUEUE_LOOK, &look);
		if (got < 0)
			return false;
	} while (hear_others(queue, room, look.waiting) && patience--);
	head->messages = look.messages;
	*notified = look.notified;
	return keep(room + look.waiting * sizeof(uint32_t), (size_t)got - look.waiting * sizeof(uint32_t));
}

static bool keep_ends(const struct queue *queue, struct queue_snapshot *head, uint32_t notified)
{
	for (const struct end *end = ends; end; end = end->next) {
		struct queue_held held = { .owner = end->owner, .number = end->number, .access = end->access };

		if (end->queue != queue)
			continue;
		if (end->noted || (end->notes && (uint32_t)end->notified != notified))
			held.noted = QUEUE_NOTIFIED;
		else if (end->notes)
			held.noted = QUEUE_TO_NOTIFY;
		if (!keep(&held, sizeof(held)))
			return false;
		head->ends++;
	}
	return true;
}

static bool keep_answers(const struct queue *queue, struct queue_snapshot *head)
{
	for (const struct task *task = tasks; task; task = task->next) {
		const struct queue_answer one = {
			.owner = task->order.owner,
			.id = task->order.id,
			.result = task->head.result,
			.kind = task->order.kind,
			.end = task->order.end,
			.value = task->head.value,
			.length = task->head.length,
		};

		if (!task->done || task->queue != queue->id || !makes_another(task))
			continue;
		if (!keep(&one, sizeof(one)) || !keep(task->data, task->head.length))
			return false;
		head->answers++;
	}
	return true;
}

/* Makes it in `kept`, and returns its length. */
static size_t take_snapshot(struct queue *queue)
{
	struct queue_snapshot head = { .id = queue->id };
	struct mq_attr attributes = { 0 };
	uint32_t notified = 0;
	struct stat file;

	update_removed(queue);
	if (fstat(queue->fd, &file) || syscall(SYS_mq_getsetattr, queue->fd, NULL, &attributes))
		return 0;
	head.mode = file.st_mode & ALLPERMS;
	head.uid = file.st_uid;
	head.gid = file.st_gid;
	head.most = (uint32_t)attributes.mq_maxmsg;
	head.size = (uint32_t)attributes.mq_msgsize;
	head.name = queue->removed ? 0 : (uint32_t)strlen(queue->name);
	head.version = ++version;
	kept_length = sizeof(head);
	(void)keep(queue->name, head.name);
	if (!keep_messages(queue, &head, &notified) || !keep_ends(queue, &head, notified) ||
	    !keep_answers(queue, &head)) {
		kept_length = sizeof(head) + head.name;
		head.messages = VOID;
		head.ends = 0;
		head.answers = 0;
	}
	memcpy(kept, &head, sizeof(head));
	return kept_length;
}

static void answer_others(uint64_t id, size_t snapshot)
{
	for (struct task *task = tasks; task; task = task->next)
		if (task->done && !task->told && task->queue == id)
			answer(task, makes_another(task) ? snapshot : 0);
}

/* Answers what has been done to a queue and not been answered, with what it is now. */
static void answer_all(uint64_t id)
{
	struct queue *queue = find_queue(id);
	size_t snapshot = 0;
	bool wanted = false;

	for (const struct task *task = tasks; task; task = task->next)
		wanted |= task->done && !task->told && task->queue == id && makes_another(task);
	if (wanted && queue)
		snapshot = take_snapshot(queue);
	answer_others(id, snapshot);
}

static void finish(struct task *task, int64_t result, uint32_t value, const void *data, size_t length)
{
	end_task(task, result, value, data, length);
	if (makes_another(task))
		answer_all(task->queue);
	else
		answer(task, 0);
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

/* The queue that has just lost its name, if somebody else has it open. */
static uint64_t find_removed(void)
{
	for (struct queue *queue = queues; queue; queue = queue->next) {
		if (queue->removed)
			continue;
		update_removed(queue);
		if (queue->removed) {
			const uint64_t id = queue->id;

			return end_queue(queue) ? 0 : id;
		}
	}
	return 0;
}

static void do_task(struct task *task, const struct packet *packet, size_t length)
{
	struct end *end = find_end(task->order.owner, task->order.end);
	struct mq_attr attributes = { 0 };
	size_t out = 0;
	int64_t result = -EIO;

	switch (task->order.kind) {
	case QUEUE_OPEN:
		result = do_named(packet, length, &out);
		end = result < 0 ? NULL : find_end(task->order.owner, (uint32_t)result);
		task->queue = end ? end->queue->id : 0;
		finish(task, result, 0, outcome.data, out);
		return;
	case QUEUE_UNLINK:
		result = do_named(packet, length, &out);
		task->queue = result < 0 ? 0 : find_removed();
		finish(task, result, 0, NULL, 0);
		return;
	default:
		if (!end || task->order.groups) {
			finish(task, -EBADF, 0, NULL, 0);
			return;
		}
		task->queue = end->queue->id;
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

static void answer_again(struct task *task)
{
	struct queue *queue = makes_another(task) ? find_queue(task->queue) : NULL;

	const size_t snapshot = queue ? take_snapshot(queue) : 0;

	answer(task, snapshot);
	answer_others(task->queue, snapshot);
}

static void begin(const struct packet *packet, size_t length)
{
	const struct queue_order *order = &packet->order;
	struct task **place = find_task(order->owner, order->id), *task = *place;

	/* The daemon that asked for it first has died. */
	if (task) {
		if (task->done)
			answer_again(task);
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

static void answer_close(const struct queue_order *order)
{
	const struct queue_report head = { .kind = QUEUE_RESULT, .owner = order->owner, .id = order->id };
	size_t snapshot = 0;

	for (struct end **place = &ends; *place; place = &(*place)->next)
		if ((*place)->number == order->end && (*place)->owner == order->owner) {
			struct queue *queue = (*place)->queue;

			close_end(place);
			if (!end_queue(queue)) {
				snapshot = take_snapshot(queue);
				answer_others(queue->id, snapshot);
			}
			break;
		}
	say_result(&head, NULL, snapshot);
}

static void answer_look(const struct packet *packet, size_t length)
{
	struct queue_report head = { .kind = QUEUE_RESULT, .owner = packet->order.owner, .id = packet->order.id };
	struct queue *queue;
	size_t snapshot = 0;
	uint64_t wanted = 0;

	if (length == sizeof(wanted))
		memcpy(&wanted, packet->data, sizeof(wanted));
	queue = packet->order.value ? find_queue(wanted) : find_inode(wanted);
	if (queue && end_queue(queue))
		queue = NULL;
	if (queue) {
		snapshot = take_snapshot(queue);
		answer_others(queue->id, snapshot);
	}
	head.result = queue ? 0 : -ENOENT;
	say_result(&head, NULL, snapshot);
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
	for (struct queue *queue = queues, *next; queue; queue = next) {
		next = queue->next;
		(void)end_queue(queue);
	}
}

/* -- made anew ---------------------------------------------------------------------------------- */

struct reader {
	const unsigned char *at, *end;
};

static const void *take(struct reader *from, void *to, size_t length)
{
	const unsigned char *place = from->at;

	if (length > (size_t)(from->end - from->at))
		return NULL;
	from->at += length;
	if (to)
		memcpy(to, place, length);
	return place;
}

static bool make_messages(int fd, const struct queue_snapshot *head, struct reader *from)
{
	struct queue_message one;

	for (uint32_t i = 0; i < head->messages; i++) {
		const void *text = take(from, &one, sizeof(one)) ? take(from, NULL, one.length) : NULL;

		if (!text || syscall(SYS_mq_timedsend, fd, text, one.length, one.priority, NULL))
			return false;
	}
	return true;
}

static bool make_ends(struct queue *queue, const char *name, const struct queue_snapshot *head, struct reader *from)
{
	struct queue_held held;

	for (uint32_t i = 0; i < head->ends; i++) {
		struct end *end = NULL;
		int fd;

		if (!take(from, &held, sizeof(held)))
			return false;
		fd = (int)syscall(SYS_mq_open, name, (held.access & O_ACCMODE) | O_CLOEXEC, 0, NULL);
		if (fd >= 0)
			end = add_end(queue, fd, held.owner, held.number, held.access & O_ACCMODE);
		if (!end)
			return false;
		if (held.noted == QUEUE_TO_NOTIFY)
			(void)begin_notes(end);
		else
			end->noted = held.noted == QUEUE_NOTIFIED;
		say(QUEUE_HELD, held.owner, held.number);
	}
	return true;
}

static void make_answers(const struct queue_snapshot *head, struct reader *from)
{
	struct queue_answer one;

	for (uint32_t i = 0; i < head->answers; i++) {
		const void *data = take(from, &one, sizeof(one)) ? take(from, NULL, one.length) : NULL;
		struct task *task = data ? calloc(1, sizeof(*task)) : NULL;

		if (!task)
			return;
		task->order = (struct queue_order){
			.kind = one.kind,
			.owner = one.owner,
			.id = one.id,
			.end = one.end,
		};
		task->queue = head->id;
		task->line = -1;
		task->told = true;
		end_task(task, one.result, one.value, data, one.length);
		task->next = tasks;
		tasks = task;
	}
}

static void drop_queue(struct queue *queue)
{
	for (struct end **place = &ends; *place;)
		if ((*place)->queue == queue)
			close_end(place);
		else
			place = &(*place)->next;
	(void)end_queue(queue);
}

static int64_t make_queue(const struct queue_snapshot *head, const char *name, struct reader *from)
{
	struct mq_attr attributes = { .mq_maxmsg = head->most, .mq_msgsize = head->size };
	const int fd = (int)syscall(SYS_mq_open, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes);
	struct queue *queue = NULL;
	struct stat file;

	if (fd < 0)
		return -errno;
	if (!fchown(fd, head->uid, head->gid) && !fchmod(fd, head->mode) && !fstat(fd, &file) &&
	    make_messages(fd, head, from))
		queue = add_queue(fd, file.st_ino, head->id, name);
	close(fd);
	if (!queue || !make_ends(queue, name, head, from)) {
		(void)syscall(SYS_mq_unlink, name);
		if (queue)
			drop_queue(queue);
		return -EIO;
	}
	make_answers(head, from);
	return 0;
}

static int64_t restore(const struct packet *packet, size_t length)
{
	struct reader from = { .at = packet->data, .end = packet->data + length };
	char name[NAME_MAX + 2] = "";
	struct queue_snapshot head;
	bool named;
	int64_t result;

	if (!take(&from, &head, sizeof(head)) || head.messages == VOID || head.name > NAME_MAX ||
	    !take(&from, name, head.name))
		return -EINVAL;
	version = version > head.version ? version : head.version;
	if (find_queue(head.id))
		return 0;
	named = packet->order.value && head.name;
	if (!named && !head.ends)
		return -ENOENT;
	if (!named)
		(void)snprintf(name, sizeof(name), "ssi-%016llx", (unsigned long long)head.id);
	result = make_queue(&head, name, &from);
	if (!result && !named)
		(void)syscall(SYS_mq_unlink, name);
	return result;
}

static void answer_restore(const struct packet *packet, size_t length)
{
	const struct queue_report head = {
		.kind = QUEUE_RESULT,
		.owner = packet->order.owner,
		.id = packet->order.id,
		.result = restore(packet, length),
	};

	say_result(&head, NULL, 0);
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
		answer_close(order);
		break;
	case QUEUE_LOOK:
		answer_look(packet, length);
		break;
	case QUEUE_RESTORE:
		answer_restore(packet, length);
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
	for (const struct queue *queue = queues; queue; queue = queue->next)
		say(QUEUE_SHARED, 0, queue->id);
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

static void serve_worker(struct task *task)
{
	if (!task->done)
		hear_worker(task);
	if (task->done && !task->told)
		answer_all(task->queue);
}

static void serve(const struct waiter *waiter, short happened)
{
	if (waiter->end)
		hear_notified(waiter->end);
	else if (waiter->task->line >= 0 || waiter->task->done)
		serve_worker(waiter->task);
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
	const struct rlimit unlimited = { .rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY };
	struct polled polled = { .room = 64 };

	if (argc != 2) {
		(void)fprintf(stderr, "usage: queuekeeper SOCKET\n");
		return 2;
	}
	(void)signal(SIGCHLD, SIG_IGN);
	(void)sigaction(SIGUSR1, &waking, NULL);
	/* What is made anew was within limits once. */
	(void)setrlimit(RLIMIT_MSGQUEUE, &unlimited);
	last_end = keeper_first_number();
	/* A keeper before this one had others, if it was killed. */
	version = (uint64_t)last_end << 32;
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	polled.waiting = calloc(polled.room, sizeof(*polled.waiting));
	if (!polled.pollers || !polled.waiting || !keeper_begin("queuekeeper", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
