/* What pages are asked for and brought by: as CRIU has it (criu/page-xfer.c). */
#ifndef SSI_PAGES_H
#define SSI_PAGES_H

#include <stdint.h>

enum { PAGE = 4096, PIECE = 64 };
enum { COMMAND_BITS = 16, GET = 7, ADD = 6, CLOSE = 0x1024 };
enum { PRESENT = 4 };	/* a flag of ADD: the pages come behind it */

struct order {
	uint32_t command, pages;
	uint64_t address, process;
} __attribute__((packed));

/* Where pages are that CRIU does not hear of, in the file that goes from preload.c to whoever has them sent. */
struct region {
	uint64_t start, pages;
};

struct piece {
	struct order head;
	char pages[PIECE * PAGE];
} __attribute__((packed));

#endif
