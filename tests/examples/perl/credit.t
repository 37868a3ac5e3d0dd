# Run: cpsim exec --rule settled-once --rule no-slot-leaked -- prove -I. credit.t
use strict;
use warnings;
use Credit qw(send_command run_job);
use HTTP::Tiny;
use JSON::PP;
use Test::More;

my $daemon = $ENV{CREDITPIGGY_ENDPOINT};
my $http   = HTTP::Tiny->new;

# A request to the control API: returns the answer.
sub control {
    my ($method, $request, $query, $body) = @_;
    my $arguments = $http->www_form_urlencode($query);
    my $response  = $http->request($method, "$ENV{CREDITPIGGY_CONTROL}/$request?$arguments", { content => $body // '' });
    die "$response->{status} $response->{content}" unless $response->{success};
    return decode_json($response->{content});
}

# Waits until a slot is as expected; what differs is the test's diagnostic.
sub slot_is {
    my ($slot, %terms) = @_;
    my $found = control('GET', 'expect/slot',
        { project => $ENV{CREDITPIGGY_PROJECT}, slot => $slot, within_s => 5, %terms });
    ok($found->{holds}, "$slot is $terms{state}") or diag $found->{message};
}

run_job($daemon, 'job-1', 'worker-7', sub { 1000 });
slot_is('job-1', state => 'claimed', machine => 'worker-7', credits => 10, counters => 'job/success=1,job/events=1000');

run_job($daemon, 'job-2', 'worker-7', sub { die "disk full\n" });
slot_is('job-2', state => 'discarded', reason => 'failed');

control('POST', 'faults', {}, encode_json(['daemon.error:kind=alloc,nth=1']));
ok(!eval { run_job($daemon, 'job-3', 'worker-7', sub { fail('it runs') }); 1 }, 'what is not allocated does not run');
like($@, qr/^not taken/, 'and is not in doubt');

control('POST', 'faults', {}, encode_json(['daemon.lose-reply:kind=claim,nth=1']));
ok(!eval { run_job($daemon, 'job-4', 'worker-7', sub { 5 }); 1 }, 'a lost answer is told');
like($@, qr/^in doubt/, 'as in doubt');
slot_is('job-4', state => 'claimed', credits => 1);

ok(!eval { send_command($daemon, 'alloc', slot => 'job-5,credits=9999'); 1 }, 'a forged field is not sent');

done_testing;
