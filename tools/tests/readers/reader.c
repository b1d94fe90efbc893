/* Reads an interval log with HdrHistogram_c and prints the percentile distribution of one tag, in microseconds. */
#include <stdio.h>
#include <string.h>
#include "hdr_histogram.h"
#include "hdr_histogram_log.h"

int main(int argc, char **argv)
{
    struct hdr_log_reader reader;
    struct hdr_histogram *whole;
    char tag[64];
    struct hdr_log_entry entry = {.tag = tag, .tag_len = sizeof tag - 1};
    FILE *file = argc > 2 ? fopen(argv[1], "r") : NULL;

    if (!file || hdr_init(1, 60000000000, 3, &whole) || hdr_log_reader_init(&reader) || hdr_log_read_header(&reader, file))
        return 2;
    for (;;) {
        struct hdr_histogram *line = NULL;
        int status;

        /* A line without a tag leaves it as it was. */
        memset(tag, 0, sizeof tag);
        status = hdr_log_read_entry(&reader, file, &entry, &line);
        if (status == -1) /* the end of the file */
            break;
        if (status != 0) {
            fprintf(stderr, "%s\n", hdr_strerror(status));
            return 1;
        }
        if (!strcmp(tag[0] ? tag : "untagged", argv[2]))
            hdr_add(whole, line);
        hdr_close(line);
    }
    return hdr_percentiles_print(whole, stdout, 5, 1000.0, CLASSIC);
}
