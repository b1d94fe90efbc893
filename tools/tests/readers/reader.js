// Reads an interval log with hdr-histogram-js of npm and prints the percentile distribution of one tag, in microseconds.
const { readFileSync } = require("fs");
const hdr = require("hdr-histogram-js");

const [path, wanted] = process.argv.slice(2);
const reader = new hdr.HistogramLogReader(readFileSync(path, "utf8"));
const whole = hdr.build({
  bitBucketSize: 64,
  lowestDiscernibleValue: 1,
  highestTrackableValue: 60_000_000_000,
  numberOfSignificantValueDigits: 3,
});
for (let line = reader.nextIntervalHistogram(); line; line = reader.nextIntervalHistogram()) {
  if ((line.tag === "NO TAG" ? "untagged" : line.tag) === wanted) whole.add(line);
}
console.log(whole.outputPercentileDistribution(5, 1000));
