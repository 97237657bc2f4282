/*
 * netbench: the whole userland of the two nodes that bench/network.py boots; runs as /init.
 *
 * The environment (the kernel puts what it does not know of its command line there) says: node, peer
 * (0: serve), mtu, seconds. The peer of a server measures bytes/s of one TCP stream, then the round
 * trip of 64 bytes, and prints `RESULT bytes_per_s us_a_round_trip`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5001, MESSAGE = 64, WARM_UP = 200, ROUND_TRIPS = 5000 };

static char buffer[1 << 18];

static _Noreturn void stop(const char *what)
{
	if (what)
		printf("FAILED %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static int number(const char *name)
{
	const char *text = getenv(name);

	return text ? atoi(text) : 0;
}

static double now(void)
{
	struct timespec time;

	if (clock_gettime(CLOCK_MONOTONIC, &time) < 0)
		stop("clock_gettime");
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct sockaddr_in address_of(int node)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
		.sin_addr.s_addr = htonl(0xc0a83200U + (uint32_t)node),
	};
}

static void set_up_interface(int node, int mtu)
{
	struct ifreq request = { .ifr_name = "vec0" };
	struct sockaddr_in address = address_of(node);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		stop("socket");
	memcpy(&request.ifr_addr, &address, sizeof address);
	if (ioctl(fd, SIOCSIFADDR, &request) < 0)
		stop("address");
	address.sin_addr.s_addr = htonl(0xffffff00);
	memcpy(&request.ifr_netmask, &address, sizeof address);
	if (ioctl(fd, SIOCSIFNETMASK, &request) < 0)
		stop("netmask");
	request.ifr_mtu = mtu;
	if (mtu && ioctl(fd, SIOCSIFMTU, &request) < 0)
		stop("mtu");
	request.ifr_flags = IFF_UP | IFF_RUNNING | IFF_BROADCAST | IFF_MULTICAST;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		stop("up");
	close(fd);
}

static void read_all(int fd, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t got = read(fd, buffer + done, size - done);

		if (got <= 0)
			stop("read");
		done += (size_t)got;
	}
}

static void write_all(int fd, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t put = write(fd, buffer + done, size - done);

		if (put <= 0)
			stop("write");
		done += (size_t)put;
	}
}

static void set_no_delay(int fd)
{
	const int yes = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0)
		stop("TCP_NODELAY");
}

/* The first byte says what is wanted: 'S', swallow until the end, then say so; or 'E', echo. */
static void serve_one(int fd)
{
	ssize_t got;
	char what;

	set_no_delay(fd);
	if (read(fd, &what, 1) != 1)
		return;
	if (what == 'S') {
		while ((got = read(fd, buffer, sizeof buffer)) > 0)
			;
		write_all(fd, 1);
		return;
	}
	while ((got = read(fd, buffer, MESSAGE)) > 0)
		write_all(fd, (size_t)got);
}

static _Noreturn void serve(int node)
{
	struct sockaddr_in address = address_of(node);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
	    listen(listener, 4) < 0)
		stop("listen");
	printf("READY\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			stop("accept");
		serve_one(fd);
		close(fd);
	}
}

static int connect_to(int peer, char what)
{
	struct sockaddr_in address = address_of(peer);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		stop("connect");
	set_no_delay(fd);
	buffer[0] = what;
	write_all(fd, 1);
	return fd;
}

static double measure_stream(int peer, int seconds)
{
	int fd = connect_to(peer, 'S');
	double start = now(), bytes = 0;

	while (now() - start < seconds) {
		write_all(fd, sizeof buffer);
		bytes += sizeof buffer;
	}
	if (shutdown(fd, SHUT_WR) < 0)
		stop("shutdown");
	read_all(fd, 1);
	bytes /= now() - start;
	close(fd);
	return bytes;
}

static double measure_round_trip(int peer)
{
	int fd = connect_to(peer, 'E');
	double start = 0;

	for (int i = -WARM_UP; i < ROUND_TRIPS; i++) {
		if (!i)
			start = now();
		write_all(fd, MESSAGE);
		read_all(fd, MESSAGE);
	}
	start = now() - start;
	close(fd);
	return start * 1e6 / ROUND_TRIPS;
}

int main(void)
{
	int peer = number("peer");

	set_up_interface(number("node"), number("mtu"));
	if (!peer)
		serve(number("node"));
	double bytes_per_s = measure_stream(peer, number("seconds"));

	printf("RESULT %.0f %.2f\n", bytes_per_s, measure_round_trip(peer));
	stop(NULL);
}
