/*
 * fifokeeper SOCKET ROOT: this node's ends of FIFOs, for processes of other nodes.
 *
 * The pipe of a FIFO is in one node's kernel; who uses it on another node has an end here, and what he
 * does to his descriptor is ordered by the daemon and done here. The daemon may be killed: this process
 * keeps the ends, and what came of an order until that has arrived. It is in the ramdisk's mount
 * namespace, which gets the kernel's own pipes. Runs as root: FIFOs are opened by their handles.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "fifokeeper.h"
#include "keeper.h"

enum {
	MAX_DATA = 32 * 1024,
	MAX_IOCTL = 256,
};

struct end {
	struct end *next;
	uint32_t number, owner;
	int fd;
	struct fifo_name name;
};

struct task {
	struct task *next;
	struct fifo_order order;
	bool done;
	int opener;		/* where the descriptor comes from; -1 */
	pid_t child;
	int64_t result;
	size_t length;
	unsigned char data[];
};

struct packet {
	struct fifo_order order;
	unsigned char data[MAX_DATA];
};

static struct end *ends;
static struct task *tasks;	/* the oldest first: who has waited longest is served first */
static uint32_t last_end;
static int root_fd = -1;

/* -- what the daemon hears -------------------------------------------------------------------- */

static void report(uint32_t kind, uint32_t owner, uint64_t id, int64_t result, const void *data, size_t length)
{
	struct fifo_report head = { .kind = kind, .owner = owner, .id = id, .result = result };

	keeper_say(&head, sizeof(head), data, length, -1);
}

static void answer(const struct task *task)
{
	const bool has_data = task->order.kind == FIFO_READ || task->order.kind == FIFO_IOCTL;
	size_t length = 0;

	if (has_data && task->result >= 0)
		length = task->order.kind == FIFO_READ ? (size_t)task->result : task->order.size;
	report(FIFO_RESULT, task->order.owner, task->order.id, task->result, task->data, length);
}

static void finish(struct task *task, int64_t result)
{
	task->done = true;
	task->result = result;
	answer(task);
}

/* -- ends ------------------------------------------------------------------------------------- */

static struct end *find_end(uint32_t number)
{
	struct end *end = ends;

	while (end && end->number != number)
		end = end->next;
	return end;
}

static void close_end(struct end **place)
{
	struct end *end = *place;

	*place = end->next;
	close(end->fd);
	free(end);
}

/* Returns its number, or a negative errno; `fd` is the end's from then on. */
static int64_t add_end(int fd, uint32_t owner, const struct fifo_name *name)
{
	struct end *end = malloc(sizeof(*end));
	const int flags = fcntl(fd, F_GETFL);

	if (!end || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
		close(fd);
		free(end);
		return -ENOMEM;
	}
	*end = (struct end){ .next = ends, .number = ++last_end, .owner = owner, .fd = fd, .name = *name };
	ends = end;
	return end->number;
}

/* -- opening, which may take for ever --------------------------------------------------------- */

static int open_name(const struct fifo_name *name, int flags)
{
	union {
		struct file_handle head;
		unsigned char room[sizeof(struct file_handle) + sizeof(name->handle)];
	} handle = { 0 };

	handle.head.handle_bytes = name->words * (uint32_t)sizeof(name->handle[0]);
	handle.head.handle_type = (int)name->type;
	memcpy(handle.head.f_handle, name->handle, sizeof(name->handle));
	return open_by_handle_at(root_fd, &handle.head, flags | O_CLOEXEC);
}

/* While both sides exist, none is waited for; and a reader is one that has seen a writer. */
static int open_standing(const struct fifo_name *name, int flags)
{
	const int both = open_name(name, O_RDWR | O_NONBLOCK);
	int fd;

	if (both < 0)
		return -1;
	fd = open_name(name, flags & ~O_NONBLOCK);
	close(both);
	return fd;
}

/* Returns the descriptor, or a negative errno: EINTR if the opener was killed. */
static int receive_descriptor(int from)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	int error = 0, fd = -1;
	struct iovec part = { .iov_base = &error, .iov_len = sizeof(error) };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) != sizeof(error))
		return -EINTR;
	if (error)
		return -error;
	if (message.msg_controllen && control.head.cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
	return fd < 0 ? -EMFILE : fd;
}

/* The child has a copy of all ends: it gives them back first, or none of them would ever close. */
static _Noreturn void be_opener(const struct task *task, int to)
{
	struct fifo_name name;
	int fd, error;
	struct iovec answer = { .iov_base = &error, .iov_len = sizeof(error) };

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(to, 0) < 0 || dup2(root_fd, 1) < 0)
		_exit(1);
	root_fd = 1;
	(void)close_range(2, UINT_MAX, 0);
	memcpy(&name, task->data, sizeof(name));
	if (task->order.flags & FIFO_STANDS)
		fd = open_standing(&name, (int)task->order.value);
	else
		fd = open_name(&name, (int)task->order.value);
	error = fd < 0 ? errno : 0;
	(void)keeper_send(0, &answer, 1, fd);
	_exit(0);
}

static void begin_open(struct task *task)
{
	int pair[2];

	if (task->length != sizeof(struct fifo_name) ||
	    ((const struct fifo_name *)(const void *)task->data)->words > 8) {
		finish(task, -EINVAL);
		return;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		finish(task, -errno);
		return;
	}
	task->child = fork();
	if (!task->child)
		be_opener(task, pair[1]);
	close(pair[1]);
	if (task->child < 0) {
		close(pair[0]);
		finish(task, -EAGAIN);
		return;
	}
	task->opener = pair[0];
}

static void end_open(struct task *task)
{
	struct fifo_name name;
	int64_t result = receive_descriptor(task->opener);

	close(task->opener);
	task->opener = -1;
	memcpy(&name, task->data, sizeof(name));
	if (result >= 0)
		result = add_end((int)result, task->order.owner, &name);
	finish(task, result);
}

/* -- what is ordered -------------------------------------------------------------------------- */

static void try_read(struct task *task, int fd)
{
	const ssize_t got = read(fd, task->data, task->order.value);

	if (got < 0 && (errno == EAGAIN || errno == EINTR) && !(task->order.flags & FIFO_NONBLOCK))
		return;
	finish(task, got < 0 ? -errno : got);
}

/*
 * What has room; who wants more written asks again. Up to PIPE_BUF bytes the kernel writes at once or not
 * at all.
 */
static void try_write(struct task *task, int fd)
{
	const ssize_t written = write(fd, task->data, task->length);

	if (written < 0 && (errno == EAGAIN || errno == EINTR) && !(task->order.flags & FIFO_NONBLOCK))
		return;
	finish(task, written < 0 ? -errno : written);
}

static void try_watch(struct task *task, int fd)
{
	struct pollfd poller = { .fd = fd, .events = (short)task->order.value };

	if (poll(&poller, 1, 0) > 0 || task->order.flags & FIFO_NONBLOCK)
		finish(task, poller.revents);
}

static void try_task(struct task *task)
{
	const struct end *end;

	if (task->order.kind == FIFO_OPEN) {
		end_open(task);
		return;
	}
	end = find_end(task->order.end);
	if (!end) {
		finish(task, -EBADF);
		return;
	}
	switch (task->order.kind) {
	case FIFO_READ:
		try_read(task, end->fd);
		break;
	case FIFO_WRITE:
		try_write(task, end->fd);
		break;
	case FIFO_IOCTL: {
		const int result = ioctl(end->fd, task->order.value, task->data);

		finish(task, result < 0 ? -errno : result);
		break;
	}
	default:
		try_watch(task, end->fd);
	}
}

static struct task **find_task(uint32_t owner, uint64_t id)
{
	struct task **place = &tasks;

	while (*place && ((*place)->order.owner != owner || (*place)->order.id != id))
		place = &(*place)->next;
	return place;
}

static void begin(const struct packet *packet, size_t length)
{
	const struct fifo_order *order = &packet->order;
	struct task **place = find_task(order->owner, order->id), *task = *place;
	size_t room = length;

	/* The daemon that asked for it first has died. */
	if (task) {
		if (task->done)
			answer(task);
		return;
	}
	if (order->kind == FIFO_READ)
		room = order->value;
	else if (order->kind == FIFO_IOCTL)
		room = MAX_IOCTL;
	if (room > MAX_DATA || length > room || (order->kind == FIFO_IOCTL && order->size > room)) {
		report(FIFO_RESULT, order->owner, order->id, -EINVAL, NULL, 0);
		return;
	}
	task = calloc(1, sizeof(*task) + room);
	if (!task) {
		report(FIFO_RESULT, order->owner, order->id, -ENOMEM, NULL, 0);
		return;
	}
	task->order = *order;
	task->opener = -1;
	task->length = length;
	memcpy(task->data, packet->data, length);
	*place = task;
	if (order->kind == FIFO_OPEN)
		begin_open(task);
	else
		try_task(task);
}

static void cancel(uint32_t owner, uint64_t id)
{
	struct task *task = *find_task(owner, id);

	if (!task || task->done)
		return;
	/* It may have opened it already: then that is the answer. */
	if (task->opener >= 0)
		(void)kill(task->child, SIGKILL);
	else
		finish(task, -EINTR);
}

static void forget(struct task **place)
{
	struct task *task = *place;

	*place = task->next;
	if (task->opener >= 0) {
		(void)kill(task->child, SIGKILL);
		close(task->opener);
	}
	free(task);
}

static void close_ordered(const struct fifo_order *order)
{
	struct end **place = &ends;

	while (*place && (*place)->number != order->end)
		place = &(*place)->next;
	if (*place)
		close_end(place);
	for (struct task *task = tasks; task; task = task->next)
		if (!task->done && task->order.kind != FIFO_OPEN && task->order.end == order->end)
			finish(task, -EBADF);
	report(FIFO_RESULT, order->owner, order->id, 0, NULL, 0);
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

static void obey(const struct packet *packet, size_t length)
{
	const struct fifo_order *order = &packet->order;
	struct task **place;

	switch (order->kind) {
	case FIFO_CANCEL:
		cancel(order->owner, order->id);
		break;
	case FIFO_DONE:
		place = find_task(order->owner, order->id);
		if (*place && (*place)->done)
			forget(place);
		break;
	case FIFO_CLOSE:
		close_ordered(order);
		break;
	case FIFO_DROP:
		drop(order->owner);
		break;
	default:
		begin(packet, length);
	}
}

/* -- the daemon ------------------------------------------------------------------------------- */

static void take_daemon(void)
{
	if (!keeper_take_daemon())
		return;
	for (const struct end *end = ends; end; end = end->next)
		report(FIFO_HELD, end->owner, end->number, 0, &end->name, sizeof(end->name));
	report(FIFO_TOLD, 0, 0, 0, NULL, 0);
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

static short events_of(const struct task *task)
{
	switch (task->order.kind) {
	case FIFO_OPEN:
	case FIFO_READ:
		return POLLIN;
	case FIFO_WRITE:
		return POLLOUT;
	default:
		return (short)task->order.value;
	}
}

static int descriptor_of(const struct task *task)
{
	const struct end *end;

	if (task->opener >= 0)
		return task->opener;
	end = find_end(task->order.end);
	return end ? end->fd : -1;
}

struct polled {
	struct pollfd *pollers;
	struct task **waiting;
	size_t room;
};

/* Returns how many tasks wait, each with its place behind KEEPER_OTHERS. */
static size_t list_waiting(struct polled *polled)
{
	size_t count = 0;

	for (struct task *task = tasks; task; task = task->next) {
		if (task->done)
			continue;
		if (KEEPER_OTHERS + count >= polled->room) {
			const size_t room = 2 * polled->room + 64;
			void *pollers = realloc(polled->pollers, room * sizeof(*polled->pollers));
			void *waiting;

			if (!pollers)
				break;
			polled->pollers = pollers;
			waiting = realloc(polled->waiting, room * sizeof(struct task *));
			if (!waiting)
				break;
			polled->waiting = waiting;
			polled->room = room;
		}
		polled->waiting[count] = task;
		polled->pollers[KEEPER_OTHERS + count++] = (struct pollfd){
			.fd = descriptor_of(task),
			.events = events_of(task),
		};
	}
	return count;
}

static void step(struct polled *polled)
{
	const size_t count = list_waiting(polled);
	struct pollfd *pollers = polled->pollers;

	if (keeper_poll(pollers, KEEPER_OTHERS + count, -1) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		if (pollers[KEEPER_OTHERS + i].revents)
			try_task(polled->waiting[i]);
	if (pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

int main(int argc, char **argv)
{
	struct polled polled = { .room = 64 };

	if (argc != 3) {
		(void)fprintf(stderr, "usage: fifokeeper SOCKET ROOT\n");
		return 2;
	}
	(void)signal(SIGCHLD, SIG_IGN);
	last_end = keeper_first_number();
	root_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	polled.waiting = calloc(polled.room, sizeof(struct task *));
	if (root_fd < 0 || !polled.pollers || !polled.waiting) {
		(void)fprintf(stderr, "fifokeeper: %s: %s\n", argv[2], strerror(errno));
		return 1;
	}
	if (!keeper_begin("fifokeeper", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
