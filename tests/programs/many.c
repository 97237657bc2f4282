/* many COUNT: has COUNT children that do nothing until they are killed, then says how many there are. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 1;

	for (long number = 0; number < count; number++) {
		switch (fork()) {
		case -1:
			perror("many");
			return 1;
		case 0:
			for (;;)
				pause();
		default:
			break;
		}
	}
	printf("%ld\n", count);
	fflush(stdout);
	for (;;)
		pause();
}
