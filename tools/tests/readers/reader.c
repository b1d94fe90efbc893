/* Reads an interval log with HdrHistogram_c and prints the percentile distribution in microseconds. It knows no tags. */
#include <stdio.h>
#include "hdr_histogram.h"
#include "hdr_histogram_log.h"

int main(int argc, char **argv)
{
    struct hdr_log_reader reader;
    struct hdr_histogram *whole;
    struct hdr_log_entry entry = {0};
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;

    if (!file || hdr_init(1, 60000000000, 3, &whole) || hdr_log_reader_init(&reader) || hdr_log_read_header(&reader, file))
        return 2;
    for (;;) {
        struct hdr_histogram *line = NULL;
        int status = hdr_log_read_entry(&reader, file, &entry, &line);
        if (status == -1) /* the end of the file */
            break;
        if (status != 0) {
            fprintf(stderr, "%s\n", hdr_strerror(status));
            return 1;
        }
        hdr_add(whole, line);
        hdr_close(line);
    }
    return hdr_percentiles_print(whole, stdout, 5, 1000.0, CLASSIC);
}
